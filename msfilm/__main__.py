"""``python -m msfilm`` is the command ``msfilm``."""

from msfilm.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()

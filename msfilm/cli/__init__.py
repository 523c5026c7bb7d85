"""The command ``msfilm``: each subcommand is thin over one function, which notebooks call too."""

from __future__ import annotations

from msfilm.cli import data, check, localise, networks, segment  # isort: skip  # in the order in which --help lists the commands
from msfilm.cli import course  # isort: skip
from msfilm.cli.app import app, main

__all__ = ["app", "check", "course", "data", "localise", "main", "networks", "segment"]

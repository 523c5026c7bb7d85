"""Checks inside a notebook: its parameters right after the cell that sets them, and its exercises."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from types import UnionType
from typing import Any, get_args

from msfilm.errors import SettingError, suggest

__all__ = ["check_exercise", "check_parameters"]

_PLAIN = (int, float, str, bool, list, dict, tuple, type(None))
_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open"}
_CHECKED = "_msfilm_parameters_checked"


def check_parameters(namespace: dict[str, Any], **allowed: Any) -> None:
    """Refuse a misspelt or wrong notebook parameter, so that ``papermill -p EPOCSH 3`` stops instead of being ignored.

    Call it in the cell after the one tagged 'parameters', before any other plain variable is set::

        check_parameters(globals(), PROFILE=("quick", "course", "paper"), EPOCHS=(int | None, range(1, 1001)),
                         LR=(float, (1e-6, 1.0)), DATA_DIR=str)

    Args:
        namespace: the notebook's ``globals()``.
        allowed: for each parameter what it may be: a tuple of choices; a type or union (``int | None``); or a pair of
            type and limit, where the limit is a range, a pair of inclusive bounds, or a function that says yes or no.
            A limit is not asked about None. An int passes for a float; a bool does not pass for an int.

    Raises:
        SettingError: ``PARAM-UNKNOWN`` for a plain variable that is no parameter, with the one probably meant;
            ``PARAM-VALUE`` for a value that is not allowed; ``PARAM-MISSING`` for a parameter without a value.
    """
    plain = [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and name not in _IPYTHON and isinstance(value, _PLAIN)
    ]
    if namespace.get(_CHECKED):
        # The cell is run a second time in one kernel, where later cells have set variables of their own by now.
        plain = [name for name in plain if difflib.get_close_matches(name.upper(), allowed, cutoff=0.8)]
    for name in plain:
        if name not in allowed:
            raise SettingError("PARAM-UNKNOWN", f"this notebook has no parameter {name!r}", mend=suggest(name, allowed))
    for name, rule in allowed.items():
        if name not in namespace:
            raise SettingError(
                "PARAM-MISSING", f"parameter {name!r} has no value", mend="set it in the parameters cell"
            )
        _check_value(name, namespace[name], rule)
    namespace[_CHECKED] = True


def check_exercise(name: str, ok: bool | Callable[[], Any], hint: str) -> None:
    """Say whether an exercise is solved; an attempt that is not there yet gets the hint, and the notebook goes on.

    Nothing is returned, so that as a cell's last line it shows what it prints and no True or False below.

    Args:
        name: for example ``'Exercise 1'``.
        ok: whether it is right, or a function that finds out. One that raises means "not yet", with what it raised.
        hint: what to look at next.
    """
    raised = ""
    if callable(ok):
        try:
            ok = ok()
        except Exception as error:  # whatever a beginner's attempt raises is an answer to learn from
            ok, raised = False, f" (your attempt raised {type(error).__name__}: {error})"
    right = bool(ok) and ok is not ...
    print(f"{name}: right" if right else f"{name}: not yet: {hint}{raised}")


def _check_value(name: str, value: Any, rule: Any) -> None:
    limit: Any = None
    if isinstance(rule, tuple) and rule and isinstance(rule[0], type | UnionType):
        rule, limit = rule
    if isinstance(rule, tuple):
        if not any(type(value) is type(choice) and value == choice for choice in rule):
            listing = ", ".join(repr(choice) for choice in rule)
            raise SettingError(
                "PARAM-VALUE",
                f"{name} = {value!r} is not allowed",
                mend=suggest(value, rule) if isinstance(value, str) else f"use one of: {listing}",
            )
        return
    kinds = get_args(rule) or (rule,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise SettingError("PARAM-VALUE", f"{name} = {value!r} is {type(value).__name__}", mend=f"give {wanted}")
    if limit is None or value is None:
        return
    if isinstance(limit, range):
        fine, said = value in limit, f"{limit[0]} to {limit[-1]}"
    elif isinstance(limit, tuple):
        fine, said = limit[0] <= value <= limit[1], f"{limit[0]} to {limit[1]}"
    else:
        fine, said = bool(limit(value)), (limit.__doc__ or "see the comment in the parameters cell").strip()
    if not fine:
        raise SettingError("PARAM-VALUE", f"{name} = {value!r} is out of bounds", mend=f"allowed: {said}")

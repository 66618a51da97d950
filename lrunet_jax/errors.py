"""Errors that commands report in one line."""

import difflib
from collections.abc import Iterable

import numpy as np


class InputError(ValueError):
    """A bad value: one line that names the field, the value and what is allowed.

    Commands print it and exit with status 2, without a traceback.
    """


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises an InputError unless `condition` holds.

    Args:
      condition: that must hold.
      field: the name of the value.
      value: the value.
      allowed: a phrase for the message: `it must be ...`.
    """
    if not condition:
        raise InputError(f"{field} is {value!r}; it must be {allowed}")


def require_below_1(field: str, value: float) -> None:
    """Raises an InputError unless `value` is in [0, 1), and not 1 in float32."""
    below_1 = 0 <= value < 1 and np.float32(value) < 1
    require(bool(below_1), field, value, "in [0, 1), in float32 too")


def require_known(field: str, value: str, known: Iterable[str]) -> None:
    """Raises an InputError that suggests the nearest name, unless `value` is known."""
    known = sorted(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"{field} is {value!r}{hint}; known are {', '.join(known)}")


def in_one_line(error: Exception) -> str:
    """The class of a library's error, and the beginning of its message."""
    message = " ".join(str(error)[:1000].split())
    return f"{type(error).__name__}: {message:.200}"


def some(words: Iterable[str]) -> str:
    """Lists the first three of some words."""
    words = list(words)
    return ", ".join(words[:3]) + ", ..." * (len(words) > 3)


class DivergedError(ArithmeticError):
    """The loss or the weights are not finite any more."""


class TroubleError(RuntimeError):
    """A disk, or memory, that fails: one line that says what could not be done.

    Nobody's mistake, and nothing is known to be damaged. Commands print it and exit
    with status 1, without a traceback.
    """

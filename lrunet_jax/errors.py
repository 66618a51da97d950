"""Errors that a user can mend."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A bad value: one line that names the field, the value and what is allowed.

    Commands print it and exit with status 2, without a traceback.
    """


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises an InputError unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} is {value!r}; it must be {allowed}")


def require_known(field: str, value: str, known: Iterable[str]) -> None:
    """Raises an InputError, with the nearest name, unless `value` is known."""
    known = sorted(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"{field} is {value!r}{hint}; known are {', '.join(known)}")


def in_one_line(error: Exception) -> str:
    """The class of a library's error, and the beginning of its message."""
    message = " ".join(str(error)[:1000].split())
    return f"{type(error).__name__}: {message:.200}"


class DivergedError(ArithmeticError):
    """The loss or the weights are not finite any more."""

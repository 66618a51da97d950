"""Errors that are the user's to mend."""

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
    """Its class and the beginning of its message, for an error of a library's."""
    message = " ".join(str(error)[:1000].split())
    return f"{type(error).__name__}: {message:.200}"


class DivergedError(ArithmeticError):
    """The loss or the weights are not finite any more."""

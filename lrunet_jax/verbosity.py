"""The verbosity of the libraries that log through absl."""

import contextlib
import logging
from collections.abc import Iterator

NOTHING = logging.CRITICAL + 1  # a level of logging


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """A context, or a decorator, in which absl logs nothing.

    TFDS and Orbax warn of what they have been asked for, and log each error, with its
    traceback, that they raise as well.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(NOTHING)
    try:
        yield
    finally:
        logger.setLevel(level)

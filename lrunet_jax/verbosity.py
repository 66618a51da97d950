"""The verbosity of the libraries that log through absl."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def only_errors() -> Iterator[None]:
    """A context, or a decorator, in which absl logs errors alone.

    TFDS and Orbax warn of what they have been asked for.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

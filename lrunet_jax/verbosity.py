"""The verbosity of the libraries that log through absl."""

import contextlib
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def only_errors() -> Iterator[None]:
    """A context, or a decorator, in which absl logs errors alone.

    TFDS and Orbax warn of what they have been asked for.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)

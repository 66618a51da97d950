"""Running a command: one clear line for a user's mistake."""

import sys
from collections.abc import Callable

from absl import logging

from lrunet_jax.errors import DivergedError, InputError


def run(main: Callable[[], None]) -> None:
    """Calls `main` and exits.

    The status is 0 when all went well, 2 for bad input and 1 for a run that diverged;
    the latter two with one line on standard error.
    """
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax talk a lot
    try:
        main()
    except InputError as error:
        _fail(str(error), status=2)
    except DivergedError as error:
        _fail(str(error), status=1)


def _fail(message, status):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)

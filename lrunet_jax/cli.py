"""Command lines: arguments, tables, exit status, one clear line for a mistake."""

import argparse
import asyncio
import importlib.util
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags
from flax import linen as nn
from ml_collections import ConfigDict, config_flags

from lrunet_jax.errors import DivergedError, InputError, TroubleError, in_one_line
from lrunet_jax.models import create_model, model_fields
from lrunet_jax.output import OutputError, named_output
from lrunet_jax.programs import keep_compiled_programs
from lrunet_jax.train.processes import exit_process, require_one_process
from lrunet_jax.verbosity import NOTHING

flags.disclaim_key_flags()  # help lists --config among those of the command

_HELP = {"-?", "--help", "-help", "--helpshort", "--helpfull", "--helpxml"}


def run(main: Callable[[], None], *, in_several: bool = False) -> None:
    """Calls `main` and exits: 0 if all went well, 2 for bad input, 1 for the rest.

    That is divergence, and trouble with a disk, memory or the output; and 130 for
    Ctrl-C. All of them end with one line on standard error. A reader that has gone, as
    of `| head`, has what it asked for.

    Args:
      main: the command.
      in_several: whether it runs in several processes, where they are started.
    """
    # TFDS, Orbax and gcsfs talk a lot, and where Orbax gives up at the first of many
    # arrays, asyncio tells of the others, at any later time.
    for library in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(library).setLevel(NOTHING)
    keep_compiled_programs()
    sys.unraisablehook = _report_unraisable
    with named_output():
        try:
            try:
                if not in_several:
                    require_one_process()
                main()
            except SystemExit:  # of a parser that has printed its help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
        except InputError as error:
            _fail(f"error: {error}", status=2)
        except (DivergedError, TroubleError) as error:
            _fail(f"error: {error}", status=1)
        except KeyboardInterrupt:
            _fail("interrupted", status=130)
        except OutputError as error:
            if not isinstance(error.__cause__, BrokenPipeError):
                _fail(f"error: standard output can't be written: {error}", status=1)
        except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
            others = jax.distributed.is_initialized()
            hint = "; has another process ended? Started again, all go on" * others
            _fail(f"error: {in_one_line(error)}{hint}", status=1)


def _report_unraisable(unraisable: Any) -> None:
    # Where a checkpoint is damaged, Orbax gives up at the first array; TensorStore goes
    # on reading the others, and calls back for each into an event loop that is closed.
    # Where no more files can be opened, that loop is not whole when it is deleted.
    trace, loop = unraisable.exc_traceback, asyncio.BaseEventLoop
    known = loop.call_soon_threadsafe.__code__, loop.__del__.__code__
    if trace is None or trace.tb_frame.f_code not in known:
        sys.__unraisablehook__(unraisable)


def parse_flags(argv: Sequence[str], default_config: str) -> ConfigDict:
    """Parses absl flags, and beside them `--config` and `--config.FIELD=VALUE`.

    Args:
      argv: the command's name and its arguments.
      default_config: the file to use without --config.

    Returns:
      The config.

    Raises:
      InputError: for a bad flag or a bad value of the config.
    """
    app.define_help_flags()
    try:
        argv = [argv[0], *_with_one_config(argv[1:], default_config)]
        # Not before: ml_collections reads the arguments while the flag is defined.
        config = config_flags.DEFINE_config_file(
            "config",
            help_string="FILE.py or FILE.py:ARGUMENT, by default "
            f"{os.path.relpath(default_config)}; --config.FIELD=VALUE overrides.",
            sys_argv=argv,
        )
        _, *rest = flags.FLAGS(argv)
        getattr(config.value, "keys", ())  # a file that isn't there is noticed here
        if not isinstance(config.value, ConfigDict):
            kind = type(config.value).__name__
            raise InputError(f"--config gives a {kind}; it must be a ConfigDict")
    except SystemExit:
        if _HELP.isdisjoint(argv):
            raise
        sys.exit(0)  # absl has printed the help, and takes that for a failure
    except flags.IllegalFlagValueError as error:
        raise InputError(_bad_value(str(error))) from None
    except flags.Error as error:
        raise InputError(str(error).removeprefix("ERROR:: ")) from None
    except OSError as error:
        path = re.search(r"No such file or directory: '(.*)'", str(error))
        reason = f"there is no file {path[1]}" if path else _last_line(str(error))
        raise InputError(f"--config can't be read: {reason}") from None
    except AttributeError as error:
        if "get_config" in str(error):
            raise InputError(f"--config can't be read: {error}") from None
        # Of ml_collections: an unknown field, perhaps with the nearest name.
        field = re.search(r"\w+", str(error))
        near = re.search(r'Did you mean "(\w+)"', str(error))
        hint = f" (did you mean {near[1]!r}?)" if near else ""
        name = _dotted(field[0], argv) if field else str(error)
        raise InputError(f"config has no field {name!r}{hint}") from None
    except InputError:
        raise
    except Exception as error:  # of a file's own code, or of a field within a number
        raise InputError(f"--config can't be read: {in_one_line(error)}") from None
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; known are only flags")
    # A text that is not there, as flags say it.
    given = config_flags.get_override_values(flags.FLAGS["config"])
    empty = {field: "" for field, value in given.items() if value == "None"}
    config.value.update_from_flattened_dict(empty)
    return config.value


def _with_one_config(arguments, default_config):
    """The arguments, those in flagfiles too, with one --config, which comes first.

    Of several the last one holds, and the command line's before those in flagfiles.
    """
    given, arguments = _without_config(arguments)
    try:
        arguments = flags.FLAGS.read_flags_from_files(arguments)
    except UnicodeDecodeError as error:
        raise InputError(f"--flagfile can't be read: {error}") from None
    in_files, arguments = _without_config(arguments)
    chosen = [default_config, *in_files, *given][-1]
    return [f"--config={chosen}", *arguments]


def _without_config(arguments):
    """The values of --config among the arguments, and the other arguments."""
    values, others = [], []
    rest = iter(arguments)
    for argument in rest:
        if re.match("--?config=", argument):
            values.append(argument.partition("=")[2])
        elif re.match("--?config$", argument):
            values.append(next(rest, ""))
        else:
            others.append(argument)
    return values, others


class ArgumentParser(argparse.ArgumentParser):
    """Argparse's, whose errors are a line as all others are."""

    def error(self, message: str) -> NoReturn:
        """Raises an InputError."""
        raise InputError(f"{message}; --help lists the arguments")


def add_model_fields(parser: argparse.ArgumentParser, model: str) -> None:
    """Adds an argument for each attribute of a model."""
    for name, default in model_fields(model).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)


def model_from(args: argparse.Namespace) -> nn.Module:
    """Creates the model `args.model`, by the arguments of `add_model_fields`."""
    fields = model_fields(args.model)
    return create_model(args.model, **{name: getattr(args, name) for name in fields})


def require_torch() -> None:
    """Raises an InputError unless PyTorch is installed."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("--torch needs PyTorch: pip install 'lrunet_jax[torch]'")


def json_number(value: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity: None for those."""
    return float(value) if math.isfinite(value) else None


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of equal keys as a Markdown table, numbers to the right."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    head = list(rows[0])
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [not isinstance(value, str) for value in rows[0].values()]
    rule = [
        "-" * (width - 1) + (":" if to_right else "-")
        for width, to_right in zip(widths, right, strict=True)
    ]
    for line in (head, rule, *cells):
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        print(f"| {' | '.join(padded)} |")


def _cell(value):
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _bad_value(message):
    """Rewrites absl's message as `batch_size is 'a'; it must be of type int`."""
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", message)
    if not match:
        return _last_line(message)
    value: Any = flags.FLAGS["config"].value
    *parents, name = match[1].split(".")
    for parent in parents:
        value = value[parent]
    kind = value.get_type(name)  # also of what is not set
    return f"{match[1]} is {match[2]!r}; it must be of type {kind.__name__}"


def _dotted(field, argv):
    """The name of a config's field as it was given: `model.field`."""
    pattern = rf"--?config\.((?:\w+\.)*{field})(?:=|$)"
    found = filter(None, (re.match(pattern, argument) for argument in argv))
    return next((match[1] for match in found), field)


def _last_line(message):
    """The last line of a message, without the name of the error's class."""
    return re.sub(r"^\w+Error: ", "", message.strip().splitlines()[-1])


def _fail(message, status):
    print(message, file=sys.stderr, flush=True)
    exit_process(status)

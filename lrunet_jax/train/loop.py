"""Training: from a config and a directory to a trained network."""

import dataclasses
import functools
import time

import jax
import ml_collections

from lrunet_jax import data, ops
from lrunet_jax.errors import DivergedError
from lrunet_jax.files import find_path
from lrunet_jax.memory import require_memory, size
from lrunet_jax.models import leaf_names
from lrunet_jax.output import unbreakable_output
from lrunet_jax.programs import keep_compiled_programs
from lrunet_jax.runs.checkpoints import array_fields
from lrunet_jax.runs.config import flatten
from lrunet_jax.runs.lock import require_signed
from lrunet_jax.runs.workdir import Workdir
from lrunet_jax.train import processes
from lrunet_jax.train.devices import abstract, make_mesh, place
from lrunet_jax.train.divergence import describe_divergence
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.evaluation import compile_evaluation
from lrunet_jax.train.profile import profiled
from lrunet_jax.train.progress import Progress, duration
from lrunet_jax.train.report import (
    print_data,
    print_devices,
    print_epoch,
    print_frozen,
    print_last_batch,
    print_model,
    print_result,
    print_resumed,
    print_warmup,
)
from lrunet_jax.train.setup import fresh_state, setup
from lrunet_jax.train.signals import stop_signals
from lrunet_jax.train.state import TrainState, is_finite
from lrunet_jax.train.validate import validate, validate_with_data
from lrunet_jax.weights.loading import weights_for


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str,
    data_dir: str = "",
    profile: str = "",
) -> TrainState:
    """Trains `config.model` on `config.dataset`; resumes the run in `workdir`, if any.

    Batches, augmentation and dropout follow from the seed and the step: on CPU, a run
    that was stopped and resumed ends in the same bits as one that was not. Once it
    trains, SIGTERM, SIGINT and SIGHUP stop it after a checkpoint. The lowering and the
    matmul precision are the config's, not those of a context around the call. Compiled
    programs are kept in the user's cache, see `keep_compiled_programs`. Output that
    can't be written any more stops nothing.

    After `jax.distributed.initialize` all processes call it with the same arguments and
    train together. They stop together, the first of them writes and prints, and a
    signal may come to any of them.

    Args:
      config: as `configs/default.py` documents it.
      workdir: for checkpoints, `metrics.jsonl`, `config.json`, `curves.png` and
        TensorBoard events; locked while the run trains.
      data_dir: of TFDS, see `data.load_split`.
      profile: a directory for a trace of some steps, see `profiled`; empty for none.

    Returns:
      The last state.

    Raises, in the first process, where the others raise SystemExit:
      InputError: for a bad value, before anything is written in `workdir`, and for a
        program that needs more memory than the device has.
      DivergedError: when the loss or the weights are not finite any more.
      TroubleError: when `workdir` can't be read or written.
    """
    with unbreakable_output(silent=not processes.is_first()):
        keep_compiled_programs()
        processes.each(lambda: validate(config, jax.device_count()))
        with (
            ops.lowering(config.lowering),
            jax.default_matmul_precision(config.matmul_precision),
        ):
            return _train(config, workdir, data_dir, profile)


def _train(config, workdir, data_dir, profile):
    """Does what `train_and_evaluate` does, with valid values.

    Neither data nor state lie on a device before the programs are compiled, and nothing
    is written before everything is known to be good.
    """
    path = processes.each(lambda: find_path("workdir", workdir))
    traces = processes.each(lambda: find_path("profile", profile) if profile else None)
    run = processes.OnFirst(lambda: Workdir(workdir, config))
    prepare = functools.partial(_prepare, config, data_dir)
    model, schedule, tx, *splits = processes.first_then_others(prepare)
    others = {"profile": profile, "digest of the data": data.digest(splits)}
    processes.require_same(dict(flatten(config)) | others)
    mesh, shape = make_mesh(), splits[0].images.shape
    print_warmup(config)
    print_model(model, config.model, shape[1:])
    print_data(config.dataset, *splits)
    print_devices(config.batch_size, config.matmul_precision)
    print_last_batch(len(splits[0].labels), config.batch_size)
    print(f"workdir  {path}", flush=True)
    input_stats = data.input_stats(splits[0]) if config.normalise else {}
    create = functools.partial(fresh_state, config, model, tx, shape, input_stats)
    example, *sets = abstract((jax.eval_shape(create), *splits), mesh)
    print_frozen(example)
    init_from = "" if run.has_checkpoints() else config.init_from
    weights = functools.partial(
        weights_for, model, example.learned(), init_from, normalise=config.normalise
    )
    given = processes.from_first(weights) if init_from else {}
    compiled = functools.cache(
        lambda: processes.each(lambda: _compile(config, mesh, example, *sets))
    )
    if run.epochs_done() < config.epochs:
        compiled()

    with stop_signals() as stop_here, run:
        stop_requested = lambda: processes.largest(stop_here()) > 0
        signature = run.signature()
        processes.each(lambda: require_signed(path / "lock", signature))
        fields = _resumed(jax.eval_shape(create), run)
        if fields is None:
            run.start(0, None)
            fields = processes.from_first(lambda: _fresh(create(), given))
        state = dataclasses.replace(example, **place(fields, mesh))
        if int(state.epoch) < config.epochs:
            steps, evaluate, seconds = compiled()
            train_set, test_set = place(splits, mesh)
            last_batch = data.last_batch_size(state.num_images, config.batch_size)
            print(f"compiled in {duration(seconds)}", flush=True)

        while int(state.epoch) < config.epochs and not stop_requested():
            epoch = int(state.epoch) + 1
            progress = Progress(epoch, config.epochs, state.metrics, state.num_images)
            calls = steps.run(state, train_set)
            if traces is not None:
                calls, traces = profiled(calls, traces), None
            for state in calls:
                if not is_finite(state):
                    states = steps.once_more(train_set)
                    what = describe_divergence(states, leaf_names(model, shape[3]))
                    latest = run.latest_checkpoint()
                    processes.each(lambda: _raise_diverged(*what, latest, config))
                progress.update(state.metrics)
                if state.epoch_is_done():
                    continue
                if stop_requested():
                    break
                if run.minutes_since_save() >= config.checkpoint_minutes:
                    run.save(state)
            progress.close()
            line, test = None, {}
            if state.epoch_is_done():
                if epoch % config.eval_every == 0 or epoch == config.epochs:
                    test = evaluate(state, test_set)
                rate = float(schedule(epoch - last_batch / state.num_images))
                line = {
                    "step": int(state.step),
                    "epoch": epoch,
                    **state.metrics.means("train_"),
                    "learning_rate": rate,
                    "images_per_second": progress.images_per_second,
                    **test,
                }
                print_epoch(line, config.epochs)
                state = state.next_epoch()
            run.save(state, line, test or None)

        run.draw_curves()
        print_result(state, config.epochs, run.lines(), path)
    return state


def _prepare(config, data_dir):
    """The network, its learning rate, its optimiser, and both splits of the data."""
    dataset = data.dataset_info(config.dataset)
    of_model = setup(config, dataset.num_classes)
    splits = [data.load_split(config.dataset, n, data_dir) for n in ("train", "test")]
    validate_with_data(config, splits[0].images.shape)
    return *of_model, *splits


def _compile(config, mesh, state, train_set, test_set):
    """The epoch's loop, the evaluation, and how long it took to compile them.

    Args:
      config: of the run.
      mesh: the devices.
      state: abstract arrays, as `train_set` and `test_set`.
      train_set: the training set.
      test_set: the test set.

    Raises:
      InputError: if they need more memory than there is.
    """
    began = time.monotonic()
    augmentation = data.Augmentation(**config.augment)
    batch_size, seed, dtype = config.batch_size, config.seed, config.dtype
    steps = EpochLoop(state, train_set, augmentation, mesh, batch_size, seed, dtype)
    evaluate, taken = compile_evaluation(state, test_set, batch_size, mesh)
    training = steps.memory_taken + size((state, test_set))  # the state before it
    evaluating = taken + size((state, train_set))
    require_memory("the training", max(training, evaluating))
    return steps, evaluate, time.monotonic() - began


def _resumed(fresh, run):
    """The arrays of the latest checkpoint, to go on from; None without."""
    if (restored := run.restore(fresh)) is None:
        return None
    checkpoint, changed = restored
    fields = checkpoint.fields
    print_resumed(fields["step"], fields["epoch"], changed, checkpoint.verified)
    run.start(checkpoint.step, checkpoint.lines)
    return fields


def _fresh(state, weights):
    """The arrays to begin with: those of a state, with `weights` if any are given."""
    return jax.device_get(array_fields(state.begin_with(weights) if weights else state))


def _raise_diverged(what, from_weights, latest, config):
    """Raises the error that says what went first, and what may help."""
    message = what + (f"; the last good checkpoint is {latest}" if latest else "")
    if from_weights and config.init_from:
        message += f"; it was the first step, with the weights of {config.init_from}"
    elif not from_weights and config.learning_rate > 0:
        message += "; a lower learning_rate may help"
    raise DivergedError(message)

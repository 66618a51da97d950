"""Training: from a config and a directory to a trained network."""

import dataclasses
import functools
import time

import jax
import ml_collections

from lrunet_jax import data, ops
from lrunet_jax.errors import DivergedError
from lrunet_jax.memory import require_memory, size
from lrunet_jax.models import leaf_names
from lrunet_jax.output import unbreakable_output
from lrunet_jax.programs import keep_compiled_programs
from lrunet_jax.runs.workdir import Workdir
from lrunet_jax.train.devices import abstract, make_mesh, replicated
from lrunet_jax.train.divergence import describe_divergence
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.evaluation import compile_evaluation
from lrunet_jax.train.progress import Progress, duration
from lrunet_jax.train.report import (
    print_data,
    print_devices,
    print_epoch,
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
    config: ml_collections.ConfigDict, workdir: str, data_dir: str = ""
) -> TrainState:
    """Trains `config.model` on `config.dataset`; resumes the run in `workdir`, if any.

    Batches, augmentation and dropout follow from the seed and the step: on CPU, a run
    that was stopped and resumed ends in the same bits as one that was not. Once it
    trains, SIGTERM, SIGINT and SIGHUP stop it after a checkpoint. The lowering and the
    matmul precision are the config's, not those of a context around the call. Compiled
    programs are kept in the user's cache, see `keep_compiled_programs`. Output that
    can't be written any more stops nothing.

    Args:
      config: as `configs/default.py` documents it.
      workdir: for checkpoints, `metrics.jsonl`, `config.json`, `curves.png` and
        TensorBoard events; locked while the run trains.
      data_dir: of TFDS, see `data.load_split`.

    Returns:
      The last state.

    Raises:
      InputError: for a bad value, before anything is written in `workdir`, and for a
        program that needs more memory than the device has.
      DivergedError: when the loss or the weights are not finite any more.
      TroubleError: when `workdir` can't be read or written.
    """
    with unbreakable_output():
        keep_compiled_programs()
        validate(config, jax.device_count())
        with (
            ops.lowering(config.lowering),
            jax.default_matmul_precision(config.matmul_precision),
        ):
            return _train(config, Workdir(workdir, config), data_dir)


def _train(config, run, data_dir):
    """Does what `train_and_evaluate` does, with valid values.

    Neither data nor state lie on a device before the programs are compiled, and nothing
    is written before everything is known to be good.
    """
    dataset = data.dataset_info(config.dataset, data_dir)
    model, schedule, tx = setup(config, dataset.num_classes)
    print_warmup(config)
    mesh = make_mesh()
    on_all = replicated(mesh)
    splits = [data.load_split(config.dataset, n, data_dir) for n in ("train", "test")]
    shape = splits[0].images.shape
    validate_with_data(config, shape)
    print_model(model, config.model, shape[1:])
    print_data(config.dataset, *splits)
    print_devices(config.batch_size, config.matmul_precision)
    print_last_batch(len(splits[0].labels), config.batch_size)
    print(f"workdir  {run.path}", flush=True)
    input_stats = data.input_stats(splits[0]) if config.normalise else {}
    create = functools.partial(fresh_state, config, model, tx, shape, input_stats)
    example, *sets = abstract((jax.eval_shape(create), *splits), mesh)
    init_from = "" if run.has_checkpoints() else config.init_from
    given = weights_for(model, example.learned(), init_from) if init_from else {}
    compiled = functools.cache(lambda: _compile(config, mesh, example, *sets))
    if run.epochs_done() < config.epochs:
        compiled()

    with stop_signals() as stop_requested, run:
        state = _resumed(example, run)
        if state is None:
            state = _started(jax.device_put(create(), on_all), run, given)
        if int(state.epoch) < config.epochs:
            steps, evaluate, seconds = compiled()
            train_set, test_set = jax.device_put(splits, on_all)
            last_batch = data.last_batch_size(state.num_images, config.batch_size)
            print(f"compiled in {duration(seconds)}", flush=True)

        while int(state.epoch) < config.epochs and not stop_requested():
            epoch = int(state.epoch) + 1
            progress = Progress(epoch, config.epochs, state.metrics, state.num_images)
            calls = steps.run(state, train_set)
            for state in calls:
                if not is_finite(state):
                    states = steps.once_more(train_set)
                    raise _diverged(states, model, splits[0], run, config)
                progress.update(state.metrics)
                if state.epoch_is_done():
                    continue
                if stop_requested():
                    break
                if run.checkpoints.minutes_since_save() >= config.checkpoint_minutes:
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
                state = jax.device_put(state.next_epoch(), on_all)
            run.save(state, line, test or None)

        run.draw_curves()
        print_result(state, config.epochs, run)
    return state


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


def _resumed(example, run):
    """The state of the latest checkpoint, from which the run goes on; None without."""
    if (restored := run.restore(example)) is None:
        return None
    checkpoint, changed = restored
    state = dataclasses.replace(example, **checkpoint.fields)
    print_resumed(state, changed, checkpoint.verified)
    run.start(checkpoint.step, checkpoint.lines)
    return state


def _started(fresh, run, weights):
    """The state to begin with: the fresh one, with `weights` if any are given."""
    run.start(0, None)
    if not weights:
        return fresh
    return fresh.begin_with(jax.device_put(weights, fresh.step.sharding))


def _diverged(states, model, train_set, run, config):
    """The error that says what went first, and what may help."""
    names = leaf_names(model, train_set.images.shape[3])
    what, from_weights = describe_divergence(states, names)
    latest = run.checkpoints.latest_path()
    message = what + (f"; the last good checkpoint is {latest}" if latest else "")
    if from_weights and config.init_from:
        message += f"; it was the first step, with the weights of {config.init_from}"
    elif not from_weights and config.learning_rate > 0:
        message += "; a lower learning_rate may help"
    return DivergedError(message)

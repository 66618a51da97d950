"""Training: from a config and a directory to a trained network."""

import dataclasses
import functools
import time

import jax
import ml_collections
import numpy as np

from lrunet_jax import data, ops
from lrunet_jax.errors import DivergedError
from lrunet_jax.files import find_path
from lrunet_jax.memory import require_memory, size
from lrunet_jax.models import leaf_names
from lrunet_jax.output import unbreakable_output
from lrunet_jax.programs import keep_compiled_programs
from lrunet_jax.runs.checkpoints import array_fields
from lrunet_jax.runs.config import flatten
from lrunet_jax.runs.facts import facts_of
from lrunet_jax.runs.lock import require_signed
from lrunet_jax.runs.record import accuracy_of
from lrunet_jax.runs.workdir import Workdir
from lrunet_jax.train import processes
from lrunet_jax.train.devices import abstract, make_mesh, place
from lrunet_jax.train.divergence import describe_divergence
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.evaluation import compile_evaluation
from lrunet_jax.train.profile import profiled
from lrunet_jax.train.progress import Progress, duration
from lrunet_jax.train.report import (
    print_absent,
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
from lrunet_jax.train.setup import for_data, fresh_state, setup
from lrunet_jax.train.signals import stop_signals
from lrunet_jax.train.state import TrainState, is_finite
from lrunet_jax.train.validate import validate, validate_with_data
from lrunet_jax.weights.loading import weights_for

# Images and labels, to train on and to test on.
Arrays = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str,
    data_dir: str = "",
    profile: str = "",
    data: Arrays | None = None,
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
      data_dir: of TFDS or of pictures, see `load_dataset`.
      profile: a directory for a trace of some steps, see `profiled`; empty for none.
      data: arrays in place of `config.dataset`: the images (n, H, W, channels) uint8
        and the labels (n,) to train on, and those to test on.

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
        processes.each(lambda: _require_sound(config))
        with (
            ops.lowering(config.lowering),
            jax.default_matmul_precision(config.matmul_precision),
        ):
            return _train(config, workdir, data_dir, profile, data)


def _train(config, workdir, data_dir, profile, arrays):
    """Does what `train_and_evaluate` does, with valid values.

    Neither data nor state lie on a device before the programs are compiled, and nothing
    is written before everything is known to be good.
    """
    path = processes.each(lambda: find_path("workdir", workdir))
    traces = processes.each(lambda: find_path("profile", profile) if profile else None)
    run = processes.OnFirst(lambda: Workdir(workdir, config))
    prepare = functools.partial(_prepare, config, data_dir, arrays)
    config, dataset, model, schedule, tx = processes.first_then_others(prepare)
    facts = facts_of(dataset.info)
    processes.require_same(dict(flatten(config)) | facts | {"profile": profile})
    run.set_data(facts, config)
    mesh, shape = make_mesh(), dataset.train.images.shape
    print_warmup(config)
    print_model(model, config.model, shape[1:])
    print_data(dataset.info)
    print_absent("test", dataset.test, dataset.info)
    print_devices(config.batch_size, config.matmul_precision)
    print_last_batch(len(dataset.train.labels), config.batch_size)
    print(f"workdir  {path}", flush=True)
    input_stats = data.input_stats(dataset.train) if config.normalise else {}
    create = functools.partial(fresh_state, config, model, tx, shape, input_stats)
    splits = {"train": dataset.train, "test": dataset.test}
    if config.validation:
        splits["validation"] = dataset.validation
        print_absent("held-out", dataset.validation, dataset.info)
    example, sets = abstract((jax.eval_shape(create), splits), mesh)
    print_frozen(example)
    init_from = "" if run.has_checkpoints() else config.init_from
    weights = functools.partial(
        weights_for, model, example.learned(), init_from, normalise=config.normalise
    )
    given = processes.from_first(weights) if init_from else {}
    compiled = functools.cache(
        lambda: processes.each(lambda: _compile(config, mesh, example, sets))
    )
    if run.epochs_done() < config.epochs:
        compiled()

    chosen_on = "validation" if config.validation else "test"
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
            steps, evaluations, seconds = compiled()
            sets = place(splits, mesh)
            evaluate = lambda state, name: evaluations[name](state, sets[name], name)
            last_batch = data.last_batch_size(state.num_images, config.batch_size)
            print(f"compiled in {duration(seconds)}", flush=True)

        while int(state.epoch) < config.epochs and not stop_requested():
            epoch = int(state.epoch) + 1
            progress = Progress(epoch, config.epochs, state.metrics, state.num_images)
            calls = steps.run(state, sets["train"])
            if traces is not None:
                calls, traces = profiled(calls, traces), None
            for state in calls:
                if not is_finite(state):
                    states = steps.once_more(sets["train"])
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
            line, metrics = None, {}
            if state.epoch_is_done():
                is_last = epoch == config.epochs
                if epoch % config.eval_every == 0 or is_last:
                    metrics = evaluate(state, chosen_on)
                rate = float(schedule(epoch - last_batch / state.num_images))
                line = {
                    "step": int(state.step),
                    "epoch": epoch,
                    **state.metrics.means("train_"),
                    "learning_rate": rate,
                    "images_per_second": progress.images_per_second,
                    **metrics,
                }
                if is_last and config.validation:
                    line |= _tested(line, state, evaluate, run, mesh)
                print_epoch(line, config.epochs)
                state = state.next_epoch()
            run.save(state, line, metrics or None)

        run.draw_curves()
        print_result(state, config.epochs, run.lines(), path)
    return state


def _require_sound(config):
    """Checks what does not depend on the data, which may have to be downloaded."""
    validate(config, jax.device_count())
    setup(config, num_classes=2)


def _prepare(config, data_dir, arrays):
    """The config for the data, the data, the network, its schedule, its optimiser."""
    held_out = {"validation": config.validation, "split_seed": config.split_seed}
    if arrays is None:
        dataset = data.load_dataset(
            config.dataset,
            data_dir,
            image_size=config.image_size,
            skip_broken=config.skip_broken,
            **held_out,
        )
    else:
        dataset = data.dataset_of_arrays(arrays, **held_out)
    config = for_data(config, dataset.info)
    in_bytes = size((dataset.train, dataset.validation, dataset.test))
    require_memory("the data set", in_bytes, "image_size")
    validate_with_data(config, dataset.train.images.shape)
    return config, dataset, *setup(config, dataset.info.num_classes)


def _tested(line, state, evaluate, run, mesh):
    """The metrics on the test set, of the last epoch and of the best one."""
    last = evaluate(state, "test")
    learned = array_fields(jax.eval_shape(lambda: state))
    names = ("params", "batch_stats", "ema")
    before = run.best({name: learned[name] for name in names})
    epoch, of_best = line["epoch"], last
    # Of equals the latest: that is the one whose checkpoint is kept.
    if before is not None and accuracy_of(before.metrics) > accuracy_of(line):
        epoch = before.lines[-1]["epoch"]
        of_best = evaluate(state.replace(**place(before.fields, mesh)), "test")
    of_best = {f"best_{name}": value for name, value in of_best.items()}
    return last | {"best_epoch": epoch} | of_best


def _compile(config, mesh, state, sets):
    """The epoch's loop, the evaluations, and how long it took to compile them.

    Args:
      config: of the run.
      mesh: the devices.
      state: abstract arrays, as `sets`.
      sets: the splits by their names; those that are not `train` are evaluated.

    Raises:
      InputError: if they need more memory than there is.
    """
    began = time.monotonic()
    augmentation = data.Augmentation(**config.augment)
    batch_size, seed, dtype = config.batch_size, config.seed, config.dtype
    steps = EpochLoop(state, sets["train"], augmentation, mesh, batch_size, seed, dtype)
    others = lambda name: size([sets[other] for other in sets if other != name])
    taken = [steps.memory_taken + size(state) + others("train")]  # the state before it
    evaluations = {}
    for name in [name for name in sets if name != "train"]:
        program = compile_evaluation(state, sets[name], batch_size, mesh)
        evaluations[name], bytes_taken = program
        taken.append(bytes_taken + size(state) + others(name))
    require_memory("the training", max(taken))
    return steps, evaluations, time.monotonic() - began


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

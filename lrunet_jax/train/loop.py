"""Training: from a config and a directory to a trained network."""

import time

import jax
import ml_collections

from lrunet_jax import data, ops
from lrunet_jax.errors import DivergedError, require
from lrunet_jax.models import create_model
from lrunet_jax.programs import keep_compiled_programs
from lrunet_jax.runs.curves import plot_run
from lrunet_jax.runs.workdir import Workdir
from lrunet_jax.train.devices import data_shardings, make_mesh
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.evaluation import compile_evaluation
from lrunet_jax.train.optim import create_optimizer, create_schedule
from lrunet_jax.train.progress import Progress, duration
from lrunet_jax.train.report import (
    print_data,
    print_devices,
    print_epoch,
    print_model,
    print_result,
    print_resumed,
)
from lrunet_jax.train.signals import stop_signals
from lrunet_jax.train.state import TrainState, create_train_state, is_finite
from lrunet_jax.train.targets import make_targets
from lrunet_jax.train.validate import validate
from lrunet_jax.weights.loading import weights_for


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str, data_dir: str = ""
) -> TrainState:
    """Trains `config.model` on `config.dataset`; resumes the run in `workdir`, if any.

    Batches, augmentation and dropout follow from the seed and the step: on CPU, a run
    that was stopped and resumed ends in the same bits as one that was not. SIGTERM
    and SIGINT stop it after a checkpoint. The lowering and the matmul precision are the
    config's, not those of a context around the call. Compiled programs are kept in the
    user's cache, see `keep_compiled_programs`.

    Args:
      config: as `configs/default.py` documents it.
      workdir: for checkpoints, `metrics.jsonl`, `config.json`, `curves.png` and
        TensorBoard events.
      data_dir: of TFDS, see `data.load_split`.

    Returns:
      The last state.

    Raises:
      InputError: for a bad value, before anything in `workdir` is overwritten.
      DivergedError: when the loss or the weights are not finite any more.
    """
    keep_compiled_programs()
    validate(config, jax.device_count())
    dataset = data.dataset_info(config.dataset, data_dir)
    model = create_model(num_classes=dataset.num_classes, **config.model)
    schedule = create_schedule(
        config.schedule,
        config.learning_rate,
        epochs=config.epochs,
        decay_epochs=config.decay_epochs,
        decay_factor=config.decay_factor,
        warmup_epochs=_warmup_within(config),
    )
    tx = create_optimizer(
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        decay_of=config.decay_of,
    )
    with (
        ops.lowering(config.lowering),
        jax.default_matmul_precision(config.matmul_precision),
        Workdir(workdir, config) as run,
        stop_signals() as stop_requested,
    ):
        mesh = make_mesh()
        replicated, _ = data_shardings(mesh)
        splits = _load_data(config.dataset, data_dir, config.augment)
        train_set, test_set = jax.device_put(splits, replicated)
        print_model(model, config.model, train_set.images.shape[1:])
        print_data(config.dataset, train_set, test_set)
        print_devices(config.batch_size, config.matmul_precision)
        print(f"workdir  {run.path}", flush=True)
        fresh = _fresh_state(config, model, tx, train_set)
        state = _resumed_or_pretrained(
            jax.device_put(fresh, replicated), run, model, config.init_from
        )
        record = run.start(int(state.step))

        if int(state.epoch) < config.epochs:
            began = time.monotonic()
            augment = data.make_augment(**config.augment)
            batch_size, seed, dtype = config.batch_size, config.seed, config.dtype
            steps = EpochLoop(state, train_set, augment, mesh, batch_size, seed, dtype)
            evaluate = compile_evaluation(state, test_set, batch_size, mesh)
            num_images = state.num_images
            last_batch = data.last_batch_size(num_images, batch_size)
            print(f"compiled in {duration(time.monotonic() - began)}", flush=True)

        while int(state.epoch) < config.epochs and not stop_requested():
            epoch = int(state.epoch) + 1
            progress = Progress(epoch, config.epochs, state.metrics, state.num_images)
            calls = steps.run(state)
            for state in calls:
                _require_finite(state, run)
                progress.update(state.metrics)
                if state.epoch_is_done():
                    continue
                if stop_requested():
                    break
                if run.checkpoints.minutes_since_save() >= config.checkpoint_minutes:
                    run.save(state)
            progress.close()
            test: dict[str, float] = {}
            if state.epoch_is_done():
                if epoch % config.eval_every == 0 or epoch == config.epochs:
                    test = evaluate(state)
                line = {
                    "step": int(state.step),
                    "epoch": epoch,
                    **state.metrics.means("train_"),
                    "learning_rate": float(schedule(epoch - last_batch / num_images)),
                    "images_per_second": progress.images_per_second,
                }
                record.append(line | test)
                print_epoch(line | test, config.epochs)
                state = jax.device_put(state.next_epoch(), replicated)
            run.save(state, test or None)

        curves = run.path / "curves.png"
        plot_run(record.lines, curves)
        print_result(state, config.epochs, record.lines, run.checkpoints, curves)
    return state


def _warmup_within(config):
    """The epochs of warm-up: a tenth of a run that is not longer than they are."""
    warmup, epochs = config.warmup_epochs, config.epochs
    if config.schedule != "cosine" or warmup < epochs:
        return warmup
    print(
        f"warm-up  {epochs / 10:g} epochs: warmup_epochs is {warmup:g}, and no shorter "
        f"than the run of {epochs}"
    )
    return epochs / 10


def _load_data(dataset, data_dir, augment):
    """The training and the test set, whose images the augmentation can crop."""
    train_set = data.load_split(dataset, "train", data_dir)
    room = min(train_set.images.shape[1:3]) + 2 * augment.padding
    allowed = f"at most {room}, with the padding"
    require(augment.size <= room, "augment.size", augment.size, allowed)
    return train_set, data.load_split(dataset, "test", data_dir)


def _fresh_state(config, model, tx, train_set):
    num_images, *image_shape = train_set.images.shape
    return create_train_state(
        model,
        tx,
        jax.random.key(config.seed),
        tuple(image_shape),
        num_images=num_images,
        input_stats=data.input_stats(train_set) if config.normalise else {},
        targets=make_targets(model.num_classes, config.label_smoothing, config.mixup),
        ema_decay=config.ema_decay,
    )


def _resumed_or_pretrained(fresh, run, model, init_from):
    """The state to begin with: of a checkpoint, of given weights, or the fresh one."""
    if (restored := run.restore(fresh)) is not None:
        print_resumed(*restored)
        return restored[0]
    if not init_from:
        return fresh
    weights = weights_for(model, fresh.learned(), init_from)
    return fresh.begin_with(jax.device_put(weights, fresh.step.sharding))


def _require_finite(state, run):
    if is_finite(state):
        return
    latest = run.checkpoints.latest_path()
    raise DivergedError(
        f"the loss is not finite any more at step {int(state.step):,}; "
        + (f"the last good checkpoint is {latest}; " if latest else "")
        + "a lower learning_rate may help"
    )

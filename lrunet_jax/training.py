"""Training: from a config and a directory to a trained network."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from lrunet_jax import data
from lrunet_jax.checkpoint import Checkpoints
from lrunet_jax.config import changes, require_same_run, validate
from lrunet_jax.epoch import EpochLoop
from lrunet_jax.errors import DivergedError, InputError, require
from lrunet_jax.metrics import MetricsLog, accuracy_of, write_whole
from lrunet_jax.models import create_model
from lrunet_jax.optim import create_optimizer, create_schedule
from lrunet_jax.plot import plot_run
from lrunet_jax.progress import Progress, duration, print_epoch
from lrunet_jax.state import TrainState, create_train_state
from lrunet_jax.steps import data_shardings, make_eval_call, make_mesh
from lrunet_jax.stored_model import weights_for
from lrunet_jax.summary import summarise
from lrunet_jax.targets import make_targets


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str, data_dir: str = ""
) -> TrainState:
    """Trains `config.model` on `config.dataset`; goes on where `workdir` stands.

    Batches, augmentation and dropout follow from the seed and the step: on CPU, a run
    that was stopped and resumed ends in the same bits as one that was not. SIGTERM
    and SIGINT stop it after a checkpoint.

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
    validate(config, jax.device_count())
    model = create_model(num_classes=data.NUM_CLASSES[config.dataset], **config.model)
    path = _open_workdir(workdir, config)
    with (
        jax.default_matmul_precision(config.matmul_precision),
        contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints,
        _stop_signals() as stop_requested,
    ):
        return _train(config, model, path, data_dir, checkpoints, stop_requested)


def _train(config, model, workdir, data_dir, checkpoints, stop_requested):
    mesh = make_mesh()
    replicated, _ = data_shardings(mesh)
    train_set, test_set = (
        jax.device_put(data.load_split(config.dataset, split, data_dir), replicated)
        for split in ("train", "test")
    )
    num_images, *image_shape = train_set.images.shape
    room = min(image_shape[:2]) + 2 * config.augment.padding
    size = config.augment.size
    require(size <= room, "augment.size", size, f"at most {room}, with the padding")
    _print_header(config, workdir, model, train_set, test_set)

    steps_per_epoch = data.steps_per_epoch(num_images, config.batch_size)
    state = _fresh_state(config, model, train_set, steps_per_epoch)
    state = jax.device_put(state, replicated)
    if (resumed := _resume(checkpoints, state, config, workdir)) is not None:
        state = resumed
    elif config.init_from:
        weights = weights_for(model, state.learned(), config.init_from)
        state = state.begin_with(jax.device_put(weights, replicated))
    # More or fewer than the epochs make, if the run began with another batch size.
    steps = int(state.epoch) * steps_per_epoch
    steps += int(state.metrics.count) // config.batch_size
    schedule = create_schedule(config, steps_per_epoch, int(state.step) - steps)
    state = state.replace(tx=create_optimizer(config, schedule))
    log = MetricsLog(workdir, int(state.step))
    write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")

    if int(state.epoch) < config.epochs:
        began = time.monotonic()
        augment = data.make_augment(**config.augment, lowering=model.lowering)
        loop = EpochLoop(
            state,
            train_set,
            augment,
            mesh,
            config.batch_size,
            config.seed,
            config.dtype,
        )
        batches = data.eval_batches(len(test_set.labels), config.batch_size)
        evaluate = make_eval_call(mesh).lower(state, test_set, batches).compile()
        print(f"compiled in {duration(time.monotonic() - began)}", flush=True)

    while int(state.epoch) < config.epochs and not stop_requested():
        epoch = int(state.epoch) + 1
        progress = Progress(epoch, config.epochs, state.metrics, num_images)
        test: dict[str, float] = {}
        calls = loop.run(state)
        for state in calls:
            _require_finite(state, checkpoints)
            progress.update(state.metrics)
            if int(state.metrics.count) >= num_images:
                continue
            if stop_requested():
                break
            if checkpoints.seconds_since_save() >= 60 * config.checkpoint_minutes:
                checkpoints.save(state, config.to_dict())
        else:  # the epoch is complete
            line = {
                "step": int(state.step),
                "epoch": epoch,
                **_named("train", state.metrics),
                "learning_rate": float(schedule(state.step - 1)),
                "images_per_second": progress.images_per_second,
            }
            if epoch % config.eval_every == 0 or epoch == config.epochs:
                for prefix, weights in state.evaluated().items():
                    test |= _named(prefix, evaluate(weights, test_set, batches))
            log.append(line | test)
            progress.close()
            print_epoch(log.lines[-1], config.epochs)
            state = jax.device_put(state.next_epoch(), replicated)
        progress.close()
        checkpoints.save(state, config.to_dict(), test or None)

    log.close()
    plot_run(log.lines, workdir / "curves.png")
    _print_result(config, state, log.lines, checkpoints, workdir)
    return state


def _open_workdir(workdir, config):
    """The directory, made if need be, once it is known to be this run's."""
    path = epath.Path(workdir).expanduser().resolve()
    try:
        if (stored := path / "config.json").exists():
            changed = changes(json.loads(stored.read_text()), config)
            require_same_run(changed, workdir)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / "writable", "")
        (path / "writable").unlink()
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"workdir is {workdir!r}, which can't be used: {error}; it must be a "
            "directory that can be written"
        ) from None
    return path


def _fresh_state(config, model, train_set, steps_per_epoch):
    state = create_train_state(
        model,
        create_optimizer(config, create_schedule(config, steps_per_epoch)),
        jax.random.key(config.seed),
        train_set.images.shape[1:],
        targets=make_targets(model.num_classes, config.label_smoothing, config.mixup),
        ema_decay=config.ema_decay,
    )
    if config.normalise:
        state = state.replace(input_stats=data.input_stats(train_set))
    return state


def _resume(checkpoints, fresh, config, workdir):
    """The latest checkpoint's state; None where there is none."""
    if (restored := checkpoints.restore_latest(fresh)) is None:
        return None
    state, stored = restored
    changed = changes(stored, config)
    require_same_run(changed, str(workdir))
    print(f"resumed  step {int(state.step):,}, epoch {int(state.epoch) + 1}")
    for field, (before, after) in changed.items():
        print(f"         {field}: {before!r} -> {after!r}")
    return state


def _require_finite(state, checkpoints):
    if _is_finite(state):
        return
    latest = checkpoints.latest_path()
    raise DivergedError(
        f"the loss is not finite any more at step {int(state.step):,}; "
        + (f"the last good checkpoint is {latest}; " if latest else "")
        + "a lower learning_rate may help"
    )


@jax.jit
def _is_finite(state):
    leaves = jax.tree.leaves((state.metrics.loss, state.params, state.batch_stats))
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGTERM or SIGINT into a wish that the run looks up.

    A second one has its usual effect.
    """
    received = []
    usual: dict[int, Any] = {}

    def note(number, _):
        received.append(number)
        signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            usual[number] = signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for changed, handler in usual.items():
            signal.signal(changed, handler)


def _named(split, metrics):
    return {f"{split}_{name}": value for name, value in metrics.means().items()}


def _print_header(config, workdir, model, train_set, test_set):
    shape = train_set.images.shape[1:]
    costs = summarise(model, shape)
    fields = ", ".join(
        f"{name}={value}" for name, value in config.model.items() if name != "name"
    )
    device = jax.devices()[0]
    print(f"model    {config.model.name} ({fields})")
    print(
        f"         {costs['params']:,} parameters, "
        f"{costs['macs']:,} multiply-accumulates an image"
    )
    print(
        f"data     {config.dataset}: {len(train_set.labels):,} training and "
        f"{len(test_set.labels):,} test images of {'x'.join(map(str, shape))}"
    )
    print(
        f"devices  {jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"batch {config.batch_size}, matmul precision {config.matmul_precision}"
    )
    print(f"workdir  {workdir}", flush=True)


def _print_result(config, state, lines, checkpoints, workdir):
    evaluated = [line for line in lines if "test_accuracy" in line]
    if evaluated:
        # Of equals the latest: that is the one whose checkpoint is kept.
        best = max(evaluated, key=lambda line: (accuracy_of(line), line["step"]))
        for name, line in (("best", best), ("last", evaluated[-1])):
            print(
                f"{name} test accuracy {accuracy_of(line):.2%}, epoch "
                f"{line['epoch']}: {checkpoints.path(line['step'])}"
            )
    print(f"curves {workdir / 'curves.png'}")
    if int(state.epoch) < config.epochs:
        print(
            f"stopped by a signal at step {int(state.step):,}, in epoch "
            f"{int(state.epoch) + 1} of {config.epochs}; the same command goes on"
        )
    else:
        print(f"complete: {config.epochs} epochs; more with --config.epochs")

"""Training of the classifier alone: what is frozen stays, and is as in evaluation."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import few_blocks, train_command
from test_loop import STEPS_PER_EPOCH, assert_same_bits, checkpointed
from tiny import FLAG, tiny_config

from lrunet_jax import create_model, data, list_models, ops
from lrunet_jax.errors import InputError
from lrunet_jax.models import classifier
from lrunet_jax.train.devices import make_mesh
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.freeze import ALL_BUT_CLASSIFIER, frozen_modules, in_evaluation
from lrunet_jax.train.loop import train_and_evaluate
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import Metrics, create_train_state, cross_entropy
from lrunet_jax.train.step import train_step
from lrunet_jax.train.targets import make_targets

LAST = {
    "lrunet": "classifier_4",
    "mobilenet": "classifier_1",
    "mobilenet_v2": "classifier_1",
    "shufflenet": "linear",
    "shufflenet_v2": "linear",
}
DROPOUT = {
    "lrunet": "classifier_3",
    "mobilenet": "classifier_0",
    "mobilenet_v2": "classifier_0",
}
RNG = np.random.default_rng(0)
SPLIT = data.Split(
    RNG.integers(0, 256, (18, 16, 16, 1), np.uint8),
    RNG.integers(0, 5, 18).astype(np.int32),
)
IMAGES = SPLIT.images / np.float32(255)


def small_model(name):
    fields = {"drop": 0.5} if name in DROPOUT else {}
    width = {"lrunet": {"width_mult": 0.125, "layer_reuse": 2}}
    return create_model(
        name, num_classes=5, **width.get(name, {"width_mult": 0.25}), **fields
    )


def state_of(name, freeze=ALL_BUT_CLASSIFIER, **options):
    """A state whose statistics are no norm's first ones, and pass signals."""
    model = small_model(name)
    tx = create_optimizer(lambda epoch: 0.1, nesterov=True)
    state = create_train_state(
        model,
        tx,
        jax.random.key(3),
        (16, 16, 1),
        num_images=18,
        frozen=frozen_modules(model, freeze, 1),
        **options,
    )
    rng = np.random.default_rng(1)
    random = lambda leaf: rng.uniform(0.05, 0.15, leaf.shape).astype(np.float32)
    learned = {"params": state.params, "batch_stats": state.batch_stats}
    learned["batch_stats"] = jax.tree.map(random, learned["batch_stats"])
    return state.begin_with(learned)


def assert_other_bits(found, others):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(others), strict=True):
        assert np.any(np.asarray(a) != np.asarray(b))


@pytest.mark.parametrize("name", list_models())
def test_the_classifier_is_the_last_layer_and_dropout_before_it_is_frozen(name):
    model = small_model(name)
    assert classifier(model, 3) == [LAST[name]]
    assert classifier(model.clone(num_classes=1), 3) == [LAST[name]]
    frozen = frozen_modules(model, ALL_BUT_CLASSIFIER, 3)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    assert set(frozen) == {*params, DROPOUT.get(name, LAST[name])} - {LAST[name]}
    assert frozen_modules(model, "", 3) == ()


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", list_models())
def test_over_an_epoch_with_everything_on_no_frozen_bit_moves(name):
    state = state_of(
        name,
        input_stats=data.input_stats(SPLIT),
        targets=make_targets(5, 0.1, 0.2),
        ema_decay=0.9,
    )
    last = LAST[name]
    before = jax.device_get((state.learned(), state.ema))
    mesh = make_mesh()
    augment = data.Augmentation(size=16, padding=2, rotation=10.0, flip=True)
    state, split = jax.device_put((state, SPLIT), jax.devices()[0])
    steps = EpochLoop(state, split, augment, mesh, 6, 3, "float32")
    *_, state = steps.run(state, split)
    assert int(state.step) == 3

    after = jax.device_get((state.learned(), state.ema))
    for old, new in zip(before, after, strict=True):
        assert_other_bits(new["params"].pop(last), old["params"].pop(last))
        assert_same_bits(new, old)
    (momentum,) = optax.tree.get_all_with_path(state.opt_state, "trace")
    assert list(momentum[1]) == [last]
    assert all(map(np.any, jax.tree.leaves(momentum)))


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", list_models())
def test_in_training_frozen_modules_compute_what_they_do_in_evaluation(name):
    state = state_of(name)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def apply(variables, frozen, train):
        rngs = {"dropout": jax.random.key(5)}
        options = {"train": train, "mutable": ["batch_stats"], "rngs": rngs}
        with in_evaluation(frozen):
            return state.apply_fn(variables, IMAGES, **options)

    expected, _ = apply(state.variables(), (), False)
    assert np.any(np.ptp(expected, axis=0) > 1e-3)  # images make a difference
    logits, updates = apply(state.variables(), state.frozen, True)
    assert_same_bits(logits, expected)
    assert_same_bits(updates["batch_stats"], state.batch_stats)


def test_gradients_of_what_is_frozen_are_not_sent(monkeypatch):
    sent = []
    over_batch = ops.over_batch
    note = lambda means, sums: sent.append(means) or over_batch(means, sums)
    monkeypatch.setattr(ops, "over_batch", note)
    for freeze in (ALL_BUT_CLASSIFIER, ""):
        state = state_of("lrunet", freeze)
        key = jax.random.key(0)
        jax.eval_shape(train_step, state, IMAGES, SPLIT.labels, key)
    classifier_alone, everything = sent
    assert list(classifier_alone) == ["classifier_4"]
    assert everything.keys() == state.params.keys()


def step_of_all(state, images, labels, rng):
    """The step as it was before anything could be frozen."""
    targets_key, dropout_key = jax.random.split(rng)
    images, targets = state.targets(targets_key, images, labels, None)

    def loss_fn(params):
        logits, updates = state.apply_fn(
            state.variables() | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = cross_entropy(logits, targets)
        return jnp.mean(losses), (losses, logits, updates)

    grads, (losses, logits, updates) = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics = Metrics.of(losses, logits, labels, jnp.ones(labels.shape, bool))
    changes, opt_state = state.tx.update(
        grads, state.opt_state, state.params, epoch=state.epochs_done()
    )
    step = state.step + 1
    learned = {
        "params": optax.apply_updates(state.params, changes),
        "batch_stats": updates["batch_stats"],
    }
    decay = jnp.minimum(state.ema_decay, (1 + step) / (10 + step))
    ema = optax.incremental_update(learned, state.ema, 1 - decay)
    metrics = state.metrics + metrics
    return state.replace(
        step=step, opt_state=opt_state, metrics=metrics, ema=ema, **learned
    )


@pytest.mark.slow
def test_freezing_nothing_leaves_every_bit_and_the_state_s_form():
    state = state_of("lrunet", "", targets=make_targets(5, 0.1, 0.2), ema_decay=0.9)
    form = jax.tree.structure(state.tx.init(state.params))
    assert jax.tree.structure(state.opt_state) == form
    arguments = (IMAGES, SPLIT.labels, jax.random.key(7))
    found, expected = (
        jax.jit(step)(jax.jit(step)(state, *arguments), *arguments)
        for step in (train_step, step_of_all)
    )
    assert_same_bits(found, expected)


def frozen_config(**fields):
    config = tiny_config(freeze=ALL_BUT_CLASSIFIER, **fields)
    config.update(mixup=0.2, ema_decay=0.9, nesterov=True)
    return config


@pytest.fixture(scope="module")
def frozen_run(tmp_path_factory):
    """A run of two epochs of the classifier, and what it printed."""
    workdir = tmp_path_factory.mktemp("frozen") / "run"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(words))
        with few_blocks():
            train_and_evaluate(frozen_config(), str(workdir))
    return workdir, [" ".join(map(str, words)) for words in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_run_with_frozen_modules_goes_on_to_the_same_bits(frozen_run, tmp_path):
    workdir, lines = frozen_run
    said = f"frozen   all but {LAST['mobilenet']}: 1,290 of "
    assert sum(line.startswith(said) for line in lines) == 1
    first, last = STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / str(last))
    train_and_evaluate(frozen_config(), str(again))
    found, expected = (checkpointed(path, last) for path in (again, workdir))
    assert_same_bits(found, expected)
    before = checkpointed(workdir, first)["params"]
    last = LAST["mobilenet"]
    assert_other_bits(before.pop(last), found["params"].pop(last))
    assert_same_bits(before, found["params"])


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_what_is_frozen_stays_as_it_began(frozen_run):
    config = frozen_config()
    config.freeze = ""
    with pytest.raises(InputError, match=r"freeze is '', but the run in .* 'all_"):
        train_and_evaluate(config, str(frozen_run[0]))


@pytest.mark.usefixtures("shallow")
def test_a_run_of_before_can_go_on_but_not_freeze(tmp_path):
    config = tiny_config().to_dict()
    del config["freeze"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"freeze is 'all_but_.*', but .* has ''"):
        train_and_evaluate(tiny_config(freeze=ALL_BUT_CLASSIFIER), str(tmp_path))
    flags = (f"--workdir={tmp_path}", FLAG, "--config.init_from=nowhere.t7")
    result = train_command(*flags)
    assert "path is 'nowhere.t7'" in result.stderr  # and so not freeze

"""The optimiser against PyTorch's SGD by hand, and the schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import needs_torch, torch

from configs import default
from lrunet_jax.errors import InputError
from lrunet_jax.train.optim import create_optimizer, create_schedule
from lrunet_jax.train.setup import setup


def test_sgd_is_pytorch_s_on_every_parameter():
    schedule = lambda epoch: jnp.where(epoch < 2, 0.1, 0.01)
    tx = create_optimizer(schedule, weight_decay=0.01)
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    by_hand = {name: np.asarray(value, float) for name, value in params.items()}
    buffers = dict.fromkeys(params, 0.0)
    state = tx.init(params)
    for step in range(4):
        grads = {"kernel": jnp.array([0.5, step]), "bias": jnp.array([-1.0])}
        updates, state = tx.update(grads, state, params, epoch=step)
        params = optax.apply_updates(params, updates)
        for name, grad in grads.items():  # as torch.optim.SGD documents it
            decayed = np.asarray(grad, float) + 0.01 * by_hand[name]
            buffers[name] = 0.9 * buffers[name] + decayed
            by_hand[name] = by_hand[name] - (0.1 if step < 2 else 0.01) * buffers[name]
    for name, value in params.items():
        np.testing.assert_allclose(value, by_hand[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1), (199.9, 0.1), (200, 0.01), (249.9, 0.01), (250, 0.001), (299.9, 0.001)],
)
def test_the_paper_s_schedule_falls_at_200_and_250(epoch, rate):
    _, schedule, _ = setup(default.get_config(), num_classes=10)
    np.testing.assert_allclose(schedule(epoch), rate, rtol=1e-6)


def test_cosine_rises_and_falls():
    schedule = create_schedule("cosine", 0.4, epochs=10, warmup_epochs=2.0)
    rates = [float(schedule(epoch)) for epoch in (0, 0.5, 1, 2, 6, 10)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.4, 0.2, 0], atol=1e-7)
    schedule = create_schedule("cosine", 0.4, epochs=10)
    np.testing.assert_allclose([schedule(0), schedule(5)], [0.4, 0.2], atol=1e-7)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        create_schedule("cosinus", 0.1, epochs=1)


@needs_torch
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torch_optim_sgd(nesterov):
    tx = create_optimizer(lambda epoch: 0.1, nesterov=nesterov, weight_decay=0.01)
    params = {"kernel": jnp.array([1.0, -2.0, 0.5])}
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    oracle = torch.optim.SGD(
        [parameter], 0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov
    )
    state = tx.init(params)
    for step in range(5):
        grads = {"kernel": jnp.array([0.3, step, -1.0])}
        updates, state = tx.update(grads, state, params, epoch=step)
        params = optax.apply_updates(params, updates)
        parameter.grad = torch.tensor([0.3, float(step), -1.0])
        oracle.step()
        np.testing.assert_allclose(
            params["kernel"], parameter.detach().numpy(), rtol=1e-5
        )


def test_the_decay_may_be_on_kernels_alone():
    params = {
        "stage1": {"dw": {"kernel": jnp.ones(2)}},
        "features_1": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "linear": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
    }
    options = {"momentum": 0.9, "weight_decay": 0.5}
    tx = create_optimizer(lambda epoch: 0.1, decay_of="kernels", **options)
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, state, params, epoch=0)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        expected = -0.05 if path[-1].key == "kernel" else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-6)
    # A run may change its mind: the state is of one form.
    other = create_optimizer(lambda epoch: 0.1, decay_of="all").init(params)
    assert jax.tree.structure(state) == jax.tree.structure(other)

"""Training steps for TPU v5e, by the estimates of its compiler: no TPU is needed."""

import re

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

from configs import lrunet
from lrunet_jax import create_model, data, ops
from lrunet_jax.train.devices import replicated
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import create_train_state
from lrunet_jax.train.step import make_train_call

pytest.importorskip("libtpu", reason="the TPU's compiler: pip install '.[tpu]'")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]
LOOP = re.compile(r" while\(.*body=%?([\w.-]+)")


@pytest.fixture
def mesh(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return Mesh(np.array(topology.devices[:1]), ("data",))


def compiled_step(mesh, layer_reuse, lowering):
    """The text of train.py's program, 256 images in bfloat16."""
    config = lrunet.get_config("fashion_mnist")
    model = create_model("lrunet", layer_reuse=layer_reuse)
    shape = data.dataset_info("fashion_mnist").image_shape
    state = jax.eval_shape(
        lambda: create_train_state(
            model,
            create_optimizer(lambda epoch: 0.1),
            jax.random.key(0),
            shape,
            num_images=60_000,
        )
    )
    images = jax.ShapeDtypeStruct((60_000, *shape), "uint8")
    split = data.Split(images, jax.ShapeDtypeStruct((60_000,), "int32"))
    batches = jax.ShapeDtypeStruct((234, 256), "int32")
    bound = jax.ShapeDtypeStruct((), "int32")
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)),
        (state, split, batches, bound, bound, key),
    )
    call = make_train_call(data.Augmentation(**config.augment), mesh, "bfloat16")
    with ops.lowering(lowering):
        return call.lower(*arguments).compile().as_text()


def estimated_cycles(text, layer_reuse=1, of=""):
    """Of one step: the loops of the blocks count N times.

    Of it those operations whose names contain `of`.
    """
    bodies, name = {}, ""
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = start[1]
            bodies[name] = []
        elif name:
            bodies[name].append(line)

    def cost(name):
        total = 0
        for line in bodies[name]:
            if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(cycles[1]) if of in line else 0
            if loop := LOOP.search(line):
                total += cost(loop[1]) * (layer_reuse if "/stage" in line else 1)
        return total

    # What stands before the loop over the steps is done once a call.
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.M)[1]
    (steps,) = filter(None, map(LOOP.search, bodies[entry]))
    return cost(steps[1])


def test_lrunet_s_step_takes_two_thirds_of_that_with_xla_s_own_convolutions(mesh):
    tpu, xla = (
        estimated_cycles(compiled_step(mesh, 10, lowering), 10)
        for lowering in ("tpu", "xla")
    )
    print(f"tpu {tpu:,} cycles, xla {xla:,}: {tpu / xla:.3f}")
    assert 1e6 < tpu <= 0.65 * xla


def test_augmentation_is_a_tenth_of_the_shortest_step_at_most(mesh):
    text = compiled_step(mesh, 1, "tpu")
    augment, step = estimated_cycles(text, of="/augment/"), estimated_cycles(text)
    print(f"augmentation {augment:,} of {step:,} cycles: {augment / step:.3f}")
    assert 1e4 < augment <= 0.1 * step
    # A gather has no estimate: there are those of the batch and of its angles.
    assert len(re.findall(r"= \S+ gather\(", text)) == 3

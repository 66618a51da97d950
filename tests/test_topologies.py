"""Devices that are not here: their names, and what is said where they can't be had."""

import importlib.util
import json

import jax
import jaxlib
import pytest
from conftest import process

from lrunet_jax.errors import InputError
from lrunet_jax.topologies import get_topology

COMPILE = """
import json, sys
import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from lrunet_jax import hlo
from lrunet_jax.topologies import get_topology

topology = get_topology(sys.argv[1])
mesh = Mesh(np.array(topology.devices), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
shape = (len(topology.devices), 256, 256)
a = jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)

def call(steps, a):
    product = lambda _, a: a @ a
    return lax.fori_loop(0, steps, lambda _, a: lax.fori_loop(0, 3, product, a), a)

options = topology.compiler_options
program = jax.jit(call).lower(7, a).compile(compiler_options=options)
counts = hlo.count_step(program.as_text())
print(json.dumps({
    "chip": topology.chip,
    "platform": topology.platform,
    "devices": len(topology.devices),
    "memory": topology.memory_bytes,
    "flops": counts.flops,
    "has_cycles": counts.estimated_cycles is not None,
    "backend": jax.default_backend(),
}))
"""
PRODUCTS = 3 * 2 * 256**3
HAS_TPU_COMPILER = importlib.util.find_spec("libtpu") is not None
HAS_GPU_COMPILER = (
    jax.__version_info__ >= (0, 12)
    and importlib.util.find_spec("jax_plugins") is not None
    and importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
)


def compiled_for(name):
    done = process("-c", COMPILE, name)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def message(name):
    with pytest.raises(InputError) as error:
        get_topology(name)
    text = str(error.value)
    assert text.startswith(f"topology is {name!r}")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "name",
    [
        *("", "v5e", "v5e:", "v5e:3x3", "v5e:2x4x1", "v5e:8", "v5p:2x2", "tpu:2x4"),
        *("h100", "h100:0", "h100:9", "h100:01", "h100:2x4", "H100:8", "a100:1"),
        *("cpu", "cpu:0", "cpu:-1", "cpu:1.5", "cpu:٣", "cpu:100000", "cpu:1\n"),
    ],
)
def test_an_unknown_topology_is_answered_by_what_is_allowed(name):
    text = message(name)
    assert "v5e:SHAPE" in text
    assert "2x4" in text
    assert "h100:N with N from 1 to 8" in text
    assert "cpu:N" in text


def test_where_the_compiler_for_tpus_is_missing_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert message("v6e:1x1").endswith("pip install 'lrunet_jax[tpu]'")


def test_where_the_compiler_for_gpus_is_missing_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    version = jaxlib.__version__
    assert message("h100:8").endswith(
        f"pip install --no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
    )


def test_gpus_need_a_later_jax(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 9))
    assert "needs jax 0.12 or later" in message("h100:1")


def test_more_cpu_devices_than_a_process_has_started_with_are_a_mistake():
    has = len(jax.devices("cpu"))
    assert f"has {has} CPU devices already" in message(f"cpu:{has + 1}")
    assert get_topology(f"cpu:{has}").devices == jax.devices("cpu")


def test_a_cpu_can_be_eight_devices():
    result = compiled_for("cpu:8")
    assert result.pop("memory") > 2**20
    assert result == {
        "chip": "CPU",
        "platform": "cpu",
        "devices": 8,
        "flops": PRODUCTS,
        "has_cycles": False,
        "backend": "cpu",
    }


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="pip install '.[tpu]'")
@pytest.mark.parametrize(
    ("name", "chip", "devices", "gigabytes"),
    [
        ("v5e:1x1", "TPU v5e", 1, 15.75),
        ("v5e:2x4", "TPU v5e", 8, 15.75),
        ("v6e:2x2", "TPU v6e", 4, 31.25),
    ],
)
def test_programs_are_compiled_for_tpus_that_are_not_here(
    name, chip, devices, gigabytes
):
    assert compiled_for(name) == {
        "chip": chip,
        "platform": "tpu",
        "devices": devices,
        "memory": gigabytes * 2**30,
        "flops": PRODUCTS,
        "has_cycles": True,
        "backend": "cpu",
    }


@pytest.mark.skipif(not HAS_GPU_COMPILER, reason="jax-cuda13-plugin, and jax 0.12")
@pytest.mark.parametrize("devices", [1, 8])
def test_programs_are_compiled_for_gpus_that_are_not_here(devices):
    result = compiled_for(f"h100:{devices}")
    assert 79e9 < result.pop("memory") < 86e9
    # It adds the parts of a product that it splits.
    assert PRODUCTS <= result.pop("flops") < 1.01 * PRODUCTS
    assert result == {
        "chip": "NVIDIA H100 80GB",
        "platform": "cuda",
        "devices": devices,
        "has_cycles": False,
        "backend": "cpu",
    }

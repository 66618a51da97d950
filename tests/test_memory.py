"""What a program takes is compared with what there is."""

import jax
import jax.numpy as jnp
import pytest

from lrunet_jax import memory
from lrunet_jax.errors import InputError


def compiled(size):
    argument = jax.ShapeDtypeStruct((size,), jnp.float32)
    return jax.jit(lambda x: jnp.sort(x + 1)).lower(argument).compile()


def test_a_program_takes_its_arguments_and_results():
    small, large = (memory.memory_taken(compiled(size)) for size in (1000, 2000))
    assert small >= 2 * 4 * 1000
    assert large - small == pytest.approx(small, rel=0.5)


def test_what_lies_between_arguments_and_results_counts():
    argument = jax.ShapeDtypeStruct((500, 500), jnp.float32)
    one, two = (
        memory.memory_taken(jax.jit(function).lower(argument).compile())
        for function in (lambda x: x @ x, lambda x: jnp.tanh(x @ x) @ x)
    )
    assert two - one >= 4 * 500**2


def test_what_takes_more_than_there_is_is_refused_with_both_figures():
    limit = memory.device_memory()
    assert 1e8 < limit < 1e14
    memory.require_memory("it", limit)
    with pytest.raises(InputError, match=r"it takes 1,000,000.0 GB .* has \d"):
        memory.require_memory("it", 10**15)


def test_a_cgroup_s_limit_counts(tmp_path, monkeypatch):
    whole = memory.device_memory()
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("max\n" if file == "memory.max" else "123456789\n")
    monkeypatch.setattr(memory, "_CGROUPS", str(tmp_path))
    lines = "4:memory:/job\n0::/job\n"
    monkeypatch.setattr(memory.pathlib.Path, "read_text", reading(lines))
    assert memory.device_memory() == 123456789 // jax.local_device_count()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "memory.max").write_text("23456789\n")
    assert memory.device_memory() == 23456789 // jax.local_device_count()
    monkeypatch.undo()
    assert memory.device_memory() == whole


def reading(lines):
    read = memory.pathlib.Path.read_text

    def read_text(path):
        return lines if str(path) == "/proc/self/cgroup" else read(path)

    return read_text

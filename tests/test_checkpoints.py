"""Checkpoints hold a state as it is, whatever its fields."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import struct

from lrunet_jax.errors import InputError
from lrunet_jax.runs.checkpoints import Checkpoints, array_fields
from lrunet_jax.runs.restoring import read_checkpoint, restore_latest, steps_in


class State(struct.PyTreeNode):
    step: jax.Array
    params: dict[str, jax.Array]
    apply_fn: object = struct.field(pytree_node=False)


class LaterState(State):
    """With a field that nobody told the checkpoints of."""

    momentum: tuple[jax.Array, dict[str, jax.Array]]
    count: int = struct.field(pytree_node=False)


def state(value, apply_fn=len):
    return LaterState(
        step=jnp.asarray(value, jnp.int32),
        params={"kernel": jnp.full((2, 3), value, jnp.float32)},
        apply_fn=apply_fn,
        momentum=(jnp.full(2, 2 * value, jnp.float32), {}),
        count=7,
    )


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path) / "checkpoints"


def test_a_new_field_of_the_state_is_stored_and_restored(directory):
    checkpoints = Checkpoints(directory)
    checkpoints.save(3, state(3), {"a": 1}, {})
    checkpoints.close()
    expected = array_fields(state(3))
    found = restore_latest(directory, lambda *_: array_fields(state(0)))
    assert (found.step, found.config, found.verified) == (3, {"a": 1}, True)
    assert jax.tree.structure(found.fields) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found.fields, expected)
    assert set(found.fields) == {"step", "params", "momentum"}


def test_only_the_fields_that_are_wanted_are_read(directory):
    checkpoints = Checkpoints(directory)
    checkpoints.save(3, state(3), {"a": 1}, {}, metrics={"test_accuracy": 0.5})
    checkpoints.close()
    wanted = {"params": {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}}
    found = read_checkpoint(directory, None, lambda *_: wanted)
    assert (found.step, found.config) == (3, {"a": 1})
    assert found.metrics == {"test_accuracy": 0.5}
    kernel = found.fields["params"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    np.testing.assert_array_equal(kernel, np.full((2, 3), 3))


def test_a_checkpoint_that_was_written_without_its_arrays_is_noticed(directory):
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state(1), {}, {})
    assert checkpoints.latest_path() == directory / "1"  # it has waited
    (directory / "1" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(OSError, match="checkpoint 1 lacks its arrays"):
        checkpoints.save(2, state(2), {}, {})
    checkpoints.latest_path()
    (directory / "2" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(OSError, match="checkpoint 2 lacks its arrays"):
        checkpoints.close()


def test_a_later_step_by_another_s_name_hinders_no_save(directory):
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        checkpoints.save(9, state(9), {}, {})
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        checkpoints.save(3, state(3), {}, {})
    assert steps_in(directory) == [3, 9]


def test_names_that_are_no_steps_are_none(directory):
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        checkpoints.save(9, state(9), {}, {})
    for name in ("0010", "10.damaged", "\u0661\u0662", "-3", "1e3"):
        (directory / name).mkdir()
    assert steps_in(directory) == [9]


def test_a_leaf_that_is_not_there_is_named(directory, capsys):
    checkpoints = Checkpoints(directory)
    earlier = State(step=jnp.zeros((), jnp.int32), params={}, apply_fn=len)
    checkpoints.save(1, earlier, {}, {})
    checkpoints.close()
    with pytest.raises(InputError, match="no checkpoint in"):
        restore_latest(directory, lambda *_: array_fields(state(0)))
    output = capsys.readouterr().out
    assert "momentum/0 is not there, not float32[2]" in output
    assert (directory / "1").exists()


def test_a_leaf_that_the_state_has_no_place_for_is_named(directory, capsys):
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state(1), {}, {})
    checkpoints.close()
    fields = array_fields(State(state(0).step, state(0).params, len))
    with pytest.raises(InputError, match="no checkpoint in"):
        restore_latest(directory, lambda *_: fields)
    output = capsys.readouterr().out
    assert "momentum/0 is float32[2], not expected" in output


def test_the_best_and_the_two_latest_are_kept_over_many_epochs(directory):
    # Of equals the latest; some epochs are not evaluated, and two runs go on.
    accuracies = [0.5, 0.7, None, 0.9, 0.6, 0.9, None, 0.2, 0.3, 0.1, None, 0.95, 0.4]
    kept = []
    for start in (0, 5, 9):
        checkpoints = Checkpoints(directory)
        stop = {0: 5, 5: 9, 9: 13}[start]
        for step, accuracy in enumerate(accuracies[start:stop], start=start + 1):
            test = None if accuracy is None else {"test_accuracy": accuracy}
            checkpoints.save(step, state(step), {}, {}, metrics=test)
        checkpoints.close()
        kept.append(sorted(int(path.name) for path in directory.iterdir()))
    assert kept == [[4, 5], [6, 8, 9], [12, 13]]
    wanted = {"step": jax.ShapeDtypeStruct((), np.int32)}
    found = read_checkpoint(directory, None, lambda *_: wanted)
    assert (found.step, int(found.fields["step"])) == (12, 12)
    assert found.metrics["test_accuracy"] == 0.95

"""Checkpoints hold a state as it is, whatever its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import struct

from lrunet_jax.errors import InputError
from lrunet_jax.runs.checkpoints import Checkpoints, array_fields, read_checkpoint


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
    checkpoints.save(3, state(3), {"a": 1})
    checkpoints.close()
    checkpoints = Checkpoints(directory)
    restored, config = checkpoints.restore_latest(state(0, apply_fn=max))
    checkpoints.close()
    assert config == {"a": 1}
    assert jax.tree.structure(restored) == jax.tree.structure(state(3, apply_fn=max))
    jax.tree.map(np.testing.assert_array_equal, restored, state(3, apply_fn=max))
    assert set(array_fields(restored)) == {"step", "params", "momentum"}


def test_only_the_fields_that_are_wanted_are_read(directory):
    checkpoints = Checkpoints(directory)
    checkpoints.save(3, state(3), {"a": 1}, {"test_accuracy": 0.5})
    checkpoints.close()
    wanted = {"params": {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}}
    step, fields, config, metrics = read_checkpoint(directory, None, lambda _: wanted)
    assert (step, config, metrics) == (3, {"a": 1}, {"test_accuracy": 0.5})
    assert isinstance(fields["params"]["kernel"], np.ndarray)
    np.testing.assert_array_equal(fields["params"]["kernel"], np.full((2, 3), 3))


def test_a_leaf_that_is_not_there_is_named(directory, capsys):
    checkpoints = Checkpoints(directory)
    earlier = State(step=jnp.zeros((), jnp.int32), params={}, apply_fn=len)
    checkpoints.save(1, earlier, {})
    checkpoints.close()
    checkpoints = Checkpoints(directory)
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoints.restore_latest(state(0))
    checkpoints.close()
    output = capsys.readouterr().out
    assert "momentum/0 is not there, not float32[2]" in output
    assert (directory / "1").exists()


def test_a_leaf_that_the_state_has_no_place_for_is_named(directory, capsys):
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state(1), {})
    checkpoints.close()
    checkpoints = Checkpoints(directory)
    earlier = State(step=state(0).step, params=state(0).params, apply_fn=len)
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoints.restore_latest(earlier)
    checkpoints.close()
    assert "momentum/0 is float32[2], not expected" in capsys.readouterr().out


def test_the_best_and_the_two_latest_are_kept_over_many_epochs(directory):
    # Of equals the latest; some epochs are not evaluated, and two runs go on.
    accuracies = [0.5, 0.7, None, 0.9, 0.6, 0.9, None, 0.2, 0.3, 0.1, None, 0.95, 0.4]
    kept = []
    for start in (0, 5, 9):
        checkpoints = Checkpoints(directory)
        stop = {0: 5, 5: 9, 9: 13}[start]
        for step, accuracy in enumerate(accuracies[start:stop], start=start + 1):
            test = None if accuracy is None else {"test_accuracy": accuracy}
            checkpoints.save(step, state(step), {}, test)
        checkpoints.close()
        kept.append(sorted(int(path.name) for path in directory.iterdir()))
    assert kept == [[4, 5], [6, 8, 9], [12, 13]]
    wanted = {"step": jax.ShapeDtypeStruct((), np.int32)}
    step, fields, _, metrics = read_checkpoint(directory, None, lambda _: wanted)
    assert (step, int(fields["step"]), metrics["test_accuracy"]) == (12, 12, 0.95)

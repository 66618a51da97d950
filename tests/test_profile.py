"""A trace of some steps."""

import jax
import pytest
from conftest import train_command
from tiny import FLAG

from lrunet_jax.errors import TroubleError
from lrunet_jax.train.profile import profiled


def test_the_second_call_is_traced_and_all_are_passed_on(tmp_path):
    traced = []

    def calls():
        for number in range(4):
            # Ending a trace that nobody has begun is an error of JAX's.
            traced.append(number)
            jax.block_until_ready(jax.numpy.ones(3) + number)
            yield number

    assert list(profiled(calls(), tmp_path / "new" / "trace")) == [0, 1, 2, 3]
    assert traced == [0, 1, 2, 3]
    files = [path for path in (tmp_path / "new" / "trace").rglob("*") if path.is_file()]
    assert any(path.name.endswith(".xplane.pb") for path in files)


def test_of_an_epoch_of_one_call_there_is_no_trace(tmp_path, capsys):
    assert list(profiled(iter([7]), tmp_path / "trace")) == [7]
    assert not (tmp_path / "trace").exists()
    assert "none, as the epoch was one call" in capsys.readouterr().out


def test_a_directory_that_can_t_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TroubleError, match=r"profile .*file.* can.t be written: "):
        list(profiled(iter([1, 2]), tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_run_with_a_trace_says_where_it_is(tmp_path):
    flags = (FLAG, "--config.batch_size=479", "--config.epochs=1")
    traces = tmp_path / "traces"
    result = train_command(f"--workdir={tmp_path / 'a'}", f"--profile={traces}", *flags)
    assert result.returncode == 0, result.stderr
    assert f"profile of the second call: {traces}\n" in result.stdout
    (trace,) = traces.rglob("*.xplane.pb")
    assert trace.stat().st_size < 50e6  # and not all of the run's steps

"""Training steps for NVIDIA's H100, by XLA's program for it: no GPU is needed."""

import importlib.util

import jax
import pytest
from compiling import figures, sent

if jax.__version_info__ < (0, 12) or not importlib.util.find_spec("jax_cuda13_plugin"):
    pytest.skip("the GPU's compiler, with jax 0.12", allow_module_level=True)

pytestmark = pytest.mark.slow
WIDTH_1 = "--config.model.width_mult=1.0"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lrunet_s_step_is_two_thirds_of_that_with_xla_s_own_convolutions(dtype):
    gpu, xla = (
        figures(
            *("h100:1", "lrunet", f"--config.lowering={lowering}", WIDTH_1),
            f"--config.dtype={dtype}",
            batch_size=256,
        )
        for lowering in ("auto", "xla")
    )
    for figure in ("bytes", "kernels"):
        print(f"{figure}: {gpu[figure]:,}, xla {xla[figure]:,}")
    assert gpu["lowering"] == "gpu"
    assert gpu["bytes"] < 0.67 * xla["bytes"]
    assert gpu["kernels"] < 0.85 * xla["kernels"]
    assert gpu["collectives"] == {}


def test_eight_gpus_send_norms_sums_and_gradients_and_nothing_else():
    found = figures("h100:8", "lrunet")
    count, size = sent(found)
    # Of the second norm of an iteration the mean follows from the first's.
    count -= 4 * found["model"]["layer_reuse"]
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["collectives"]["all-reduce"]["count"] == count
    assert found["collectives"]["all-reduce"]["bytes"] <= 1.1 * size

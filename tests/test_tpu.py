"""Training steps for TPU, by the estimates of its compiler: no TPU is needed."""

import pytest
from compiling import figures, sent

pytest.importorskip("libtpu", reason="the TPU's compiler: pip install '.[tpu]'")

pytestmark = pytest.mark.slow
BFLOAT16 = "--config.dtype=bfloat16"


def test_lrunet_s_step_takes_two_thirds_of_that_with_xla_s_own_convolutions():
    tpu, xla = (
        figures(
            *("v5e:1x1", "lrunet", BFLOAT16, f"--config.lowering={lowering}"),
            "--config.model.width_mult=1.0",
            batch_size=256,
        )["estimated_cycles"]
        for lowering in ("auto", "xla")
    )
    print(f"tpu {tpu:,} cycles, xla {xla:,}: {tpu / xla:.3f}")
    assert 1e6 < tpu <= 0.65 * xla


def test_augmentation_is_a_tenth_of_the_shortest_step_at_most():
    one = ("--config.model.width_mult=1.0", "--config.model.layer_reuse=1")
    found = figures("v5e:1x1", "lrunet", BFLOAT16, *one, batch_size=256)
    augment, step = found["cycles_by_module"]["augment"], found["estimated_cycles"]
    print(f"augmentation {augment:,} of {step:,} cycles: {augment / step:.3f}")
    assert 1e4 < augment <= 0.1 * step


def test_eight_chips_send_norms_sums_and_gradients_and_nothing_else():
    found = figures("v5e:2x4", "lrunet", BFLOAT16)
    count, size = sent(found)
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["collectives"]["all-reduce"]["count"] == count
    assert found["collectives"]["all-reduce"]["bytes"] <= 1.1 * size

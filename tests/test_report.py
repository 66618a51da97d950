"""What a run says about itself."""

import pytest

from lrunet_jax import data
from lrunet_jax.train.report import print_last_batch


@pytest.mark.parametrize(
    ("num_images", "batch_size", "warned"),
    [
        (1437, 359, True),
        (1437, 358, True),
        (60000, 1000, False),
        (1437, 64, False),
        (9, 4, False),
    ],
)
def test_a_small_last_batch_gets_a_warning(num_images, batch_size, warned, capsys):
    print_last_batch(num_images, batch_size)
    output = capsys.readouterr().out
    if not warned:
        assert output == ""
        return
    last = data.last_batch_size(num_images, batch_size)
    assert output.startswith(f"warning  the last batch of an epoch has {last} of ")
    better = int(output.split("--config.batch_size=")[1].split()[0])
    print_last_batch(num_images, better)
    assert capsys.readouterr().out == ""

"""PyTorch, with the original's networks in it, where it is installed."""

import sys

import pytest
from conftest import IN_CI

try:
    import torch
except ImportError:
    if IN_CI and sys.version_info < (3, 12):  # where the extra `test` has it
        raise
    torch = create_torch_model = None
else:
    from lrunet_jax.weights.torch_models import create_torch_model

    # Its threads wait for each other by turning in circles, and all cores are busy.
    torch.set_num_threads(1)

# Where it may be absent; in CI it may not on Python 3.11, see above.
needs_torch = pytest.mark.skipif(
    torch is None, reason="PyTorch is not installed: pip install 'lrunet_jax[torch]'"
)

__all__ = ["create_torch_model", "needs_torch", "torch"]

"""The weights of one iteration of LruNet's reuse block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lrunet_jax.ops.batch_norm import Moments, Norm, rsqrt
from lrunet_jax.ops.blocks import merge, split
from lrunet_jax.ops.pointwise import by_group


class ReuseWeights(NamedTuple):
    """The kernels of a block, and the norms of one of its iterations.

    Attributes:
      dw: depthwise kernel (3, 3, 1, 2C).
      pw: grouped pointwise kernel (1, 1, 2C / groups, C).
      dw_norm: of the 2C channels after the depthwise convolution.
      pw_norm: of the C channels after the pointwise one.
    """

    dw: jax.Array
    pw: jax.Array
    dw_norm: Norm
    pw_norm: Norm

    @property
    def groups(self) -> int:
        """The groups of the pointwise convolution."""
        return self.dw.shape[3] // self.pw.shape[2]


class ReuseMoments(NamedTuple):
    """The moments of a batch at the two norms of an iteration."""

    dw: Moments
    pw: Moments


def fold(weights: ReuseWeights) -> tuple[jax.Array, jax.Array]:
    """Both norms, by their running moments, folded into the pointwise convolution.

    Nothing between the depthwise convolution and the addition is nonlinear.

    Returns:
      The pointwise convolution's matrices (groups, C / groups, 2C / groups), and a
      bias (C,).
    """
    dw_norm, pw_norm = weights.dw_norm, weights.pw_norm
    dw_moments, pw_moments = dw_norm.running, pw_norm.running
    assert dw_moments is not None, "the moments of the batch are not known here"
    assert pw_moments is not None, "the moments of the batch are not known here"
    dw_factor = dw_norm.scale * rsqrt(dw_moments.variance)
    pw_factor = pw_norm.scale * rsqrt(pw_moments.variance)
    matrices, groups = by_group(weights.pw, weights.groups), weights.groups
    dw_bias = split(dw_norm.bias - dw_factor * dw_moments.mean, groups)
    shift = merge(jnp.einsum("goi,gi->go", matrices, dw_bias)) - pw_moments.mean
    bias = pw_norm.bias + pw_factor * shift
    matrices *= split(dw_factor, groups)[:, None] * split(pw_factor, groups)[..., None]
    return matrices, bias

"""What a model costs: parameters and multiply-accumulates."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn


def count_parameters(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Trainable parameters of `model` for images (H, W, channels)."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def count_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of the convolutions and linear layers, for one image.

    Counted in the program itself: of the forward pass in training, where no norm is
    folded into a kernel, in the lowering that calls each convolution by its name.
    """
    model = model.clone(lowering="xla")
    image = jnp.zeros((1, *image_shape))
    key = jax.random.key(0)

    def forward(variables):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return apply(variables, image, rngs={"dropout": key})

    variables = jax.eval_shape(model.init, key, image)
    return _macs(jax.make_jaxpr(forward)(variables).jaxpr)


def _macs(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            # Each output value meets all of the kernel that its group has.
            kernel = equation.invars[1].aval.shape
            out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += equation.outvars[0].aval.size * (math.prod(kernel) // out_channels)
        elif name == "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            contracted = math.prod(shape[axis] for axis in contracting)
            total += equation.outvars[0].aval.size * contracted
        else:
            times = params.get("length", 1)  # of a scan
            for inner in jax.core.jaxprs_in_params(params):
                total += times * _macs(inner)
    return total

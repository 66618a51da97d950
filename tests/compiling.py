"""What `compile` says of a step, and what is to be expected by the architecture."""

import functools
import json

import jax
from conftest import OPTIMISING, on_eight_devices, process

from lrunet_jax import create_model
from lrunet_jax.models import abstract_variables

SMALL_NETWORKS = {
    "lrunet": ("--config.model.width_mult=0.25", "--config.model.layer_reuse=3"),
    "mobilenet": ("--config.model.width_mult=0.125",),
}


@functools.cache
def figures(topology, name, *flags, batch_size=64):
    """The figures of the training step of a network, by a process of its own."""
    arguments = (f"--topology={topology}", f"--batch_size={batch_size}", "--json")
    arguments += (f"--config=configs/{name}.py:cifar10", *SMALL_NETWORKS.get(name, ()))
    # As users' programs are compiled. What CPUs send is the same without.
    environment = on_eight_devices(**{} if topology.startswith("cpu") else OPTIMISING)
    command = ("-m", "lrunet_jax.compile", *arguments, *flags)
    result = process(*command, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def sent(found, messages=1):
    """How many reductions such a step takes on several devices, and the bytes of them.

    Two for each norm forward, one backward, and one for gradients and metrics. An array
    each of means and variances, and two of sums backward.

    Args:
      found: the `figures` of the step.
      messages: that a norm of a reuse block splits each of its own into.
    """
    model = create_model(num_classes=10, **found["model"])
    params = abstract_variables(model, channels=3)["params"]
    reductions, values = 1, 3
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values += leaf.size
        if path[-1].key == "scale":
            iterations = leaf.shape[0] * messages if leaf.ndim == 2 else 1
            reductions += 3 * iterations
            values += 4 * leaf.size
    return reductions, 4 * values

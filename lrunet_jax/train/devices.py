"""The devices, and what each of them holds."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """All devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))


def data_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """The sharding of arrays that all devices hold, and of arrays that they share.

    The latter are split between them along the first axis.
    """
    return (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("data")),
    )

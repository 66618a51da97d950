"""The devices, and what each of them holds."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """All devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))


def data_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """The replicated sharding, and the one that splits the first axis over `data`."""
    return (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("data")),
    )

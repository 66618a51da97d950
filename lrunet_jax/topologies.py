"""Devices that are not here, to compile programs for."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
import jaxlib
from jax.experimental import topologies

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.memory import device_memory

_TPU_CHIPS = {
    # Beyond this the compiler gives up; the chips have 16 and 32 GiB.
    "v5e": ("TPU v5e", int(15.75 * 2**30)),
    "v6e": ("TPU v6e", int(31.25 * 2**30)),
}
_TPU_SHAPES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_MAX_GPUS = 8  # of one machine
_MAX_CPU_DEVICES = 256
ALLOWED = (
    f"v5e:SHAPE or v6e:SHAPE with SHAPE one of {', '.join(_TPU_SHAPES)}; "
    f"h100:N with N from 1 to {_MAX_GPUS}; "
    f"or cpu:N with N from 1 to {_MAX_CPU_DEVICES}"
)

_H100_MEMORY = 84_929_347_584
# H100 SXM5 80 GB, as its data sheet and the CUDA programming guide (compute capability
# 9.0) have it: 132 multiprocessors of 128 lanes, 228 KB shared memory each, of which a
# block gets 227 if it asks and 48 if not; 50 MB L2; HBM3 at 3.35 TB/s.
_H100 = f"""
device_description_str: "NVIDIA H100 80GB HBM3"
platform_name: "CUDA"
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: {_H100_MEMORY}
  memory_bandwidth: {3_352_320_000_000}
  l2_cache_size: {50 * 2**20}
  shared_memory_per_core: {228 * 2**10}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {227 * 2**10}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
}}
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 minor: 0 }}
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      chip: what each device is called.
      platform: "tpu", "cuda" or "cpu".
      devices: for a mesh; programs for those of "tpu" and "cuda" can't be run.
      memory_bytes: that each has; None if it is not known.
      compiler_options: to give to `compile`.
    """

    chip: str
    platform: str
    devices: list[Any]
    memory_bytes: int | None
    compiler_options: dict[str, Any]


def get_topology(name: str) -> Topology:
    """The devices that a name such as `v5e:2x4`, `h100:8` or `cpu:8` stands for.

    From then on JAX uses the CPU in this process, unless it uses other devices already:
    those that the machine has are not needed and stay free.

    Args:
      name: see ALLOWED.

    Raises:
      InputError: for an unknown name; for a compiler that is not installed; or if the
        process has used JAX already, with fewer CPU devices.
    """
    kind, _, shape = name.partition(":")
    number = int(shape) if re.fullmatch(r"[1-9]\d{0,3}", shape) else 0
    if kind in _TPU_CHIPS and shape in _TPU_SHAPES:
        return _tpu(name, *_TPU_CHIPS[kind])
    if kind == "h100" and 1 <= number <= _MAX_GPUS:
        return _h100(name, number)
    if kind == "cpu" and 1 <= number <= _MAX_CPU_DEVICES:
        return _cpu(name, number)
    raise InputError(f"topology is {name!r}; it must be {ALLOWED}")


def _tpu(name, chip, memory):
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology is {name!r}, which needs the TPU's compiler: "
            "pip install 'lrunet_jax[tpu]'"
        )
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # of a machine in Google's cloud
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # it holds no TPU
    # Where there is no TPU, it looks for these, and complains on standard error.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    one = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
    devices = _described(name, name, platform="tpu", **one)
    return Topology(chip, "tpu", devices, memory, {})


def _h100(name, number):
    if jax.__version_info__ < (0, 12):
        raise InputError(
            f"topology is {name!r}, which needs jax 0.12 or later (this is jax "
            f"{jax.__version__}): with Python 3.12 or later, pip install 'jax>=0.12' "
            "and, with --no-deps, jax-cuda13-plugin and jax-cuda13-pjrt of its version"
        )
    if not any(map(_has_plugin, ("cuda13", "cuda12"))):
        version = jaxlib.__version__
        raise InputError(
            f"topology is {name!r}, which needs the GPU's compiler: pip install "
            f"--no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
        )
    devices = _described(
        name, "h100", platform="cuda", target_config=_H100, topology=f"1x1x{number}"
    )
    # Autotuning would run candidates on the device.
    options = {"xla_gpu_autotune_level": 0}
    return Topology("NVIDIA H100 80GB", "cuda", devices, _H100_MEMORY, options)


def _cpu(name, number):
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # too late; there may be enough
        jax.config.update("jax_num_cpu_devices", number)
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise InputError(
            f"topology is {name!r}, and this process has {len(devices)} CPU devices "
            "already; a new process can have as many as it needs"
        )
    return Topology("CPU", "cpu", devices[:number], device_memory(), {})


def _described(name, described, **arguments):
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(described, **arguments).devices
    except RuntimeError as error:  # JAX's own are of that class
        raise InputError(
            f"topology is {name!r}, which the installed compiler does not describe: "
            f"{in_one_line(error)}"
        ) from None


def _has_plugin(cuda):
    try:
        return importlib.util.find_spec(f"jax_plugins.xla_{cuda}") is not None
    except ModuleNotFoundError:  # there are no plugins at all
        return False

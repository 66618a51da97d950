"""What every command sets up before its work."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import jax.numpy as jnp
from lrunet_jax.command import run

def main():
    x = jnp.zeros(1 << 23)  # 32 MB
    for _ in range(40):  # until the heap is as large as it gets
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        (x + 1).block_until_ready()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults)

run(main)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_given_out_again_unless_the_user_tuned_it():
    def faults(**variables):
        result = subprocess.run(
            [sys.executable, "-c", FAULTS],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(result.stdout)

    pages = 32e6 / os.sysconf("SC_PAGESIZE")
    assert faults() < 0.1 * pages
    assert faults(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072") > 0.9 * pages

"""Counts of what a compiled program does, by its text."""

from lrunet_jax.hlo.counts import Counts, count, count_step

__all__ = ["Counts", "count", "count_step"]

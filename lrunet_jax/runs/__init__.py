"""Runs on disk: a workdir's config, checkpoints, record and curves."""

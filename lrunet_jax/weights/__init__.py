"""Trained networks on disk: runs, converted directories, PyTorch's files."""

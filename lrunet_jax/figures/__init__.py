"""Figures as files, and sheets of pictures."""

"""Datasets of the experiments."""

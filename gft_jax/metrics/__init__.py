"""Metrics: distances between samples, geometry of sampling paths, stability of convergence curves.

Distances and stability are computed on the host in double precision and return Python floats; they are for
evaluation, not for gradients. What is not finite is an error that says where, never part of a mean.
"""

from gft_jax.metrics.distances import NotFinite, energy_distance, one_step_w2, w2
from gft_jax.metrics.diversity import mean_pairwise_distance
from gft_jax.metrics.path_geometry import path_length
from gft_jax.metrics.retention import velocity_distance
from gft_jax.metrics.stability import instantaneous_variance, spearman

__all__ = [
    "NotFinite",
    "energy_distance",
    "instantaneous_variance",
    "mean_pairwise_distance",
    "one_step_w2",
    "path_length",
    "spearman",
    "velocity_distance",
    "w2",
]

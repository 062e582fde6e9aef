"""Metrics: distances between samples, diversity, geometry of sampling paths, stability of convergence curves.

Where a metric compares two sets, x are generated samples and y real ones. All but those of paths and drifts are
computed on the host in double precision (the Sinkhorn divergence: on the device) and return Python numbers; they are
for evaluation, not for gradients. What is not finite is an error that says where, never part of a mean. `floor`,
`confidence_interval` and `permutation_test` take any of them and tell what its value is worth.
"""

from gft_jax.metrics.classifier import classifier_accuracy
from gft_jax.metrics.distances import energy_distance, one_step_w2, sliced_w2, w2
from gft_jax.metrics.diversity import mean_pairwise_distance, vendi_score
from gft_jax.metrics.features import extract_features, frechet_distance
from gft_jax.metrics.kernels import (
    Kernel,
    cubic_kernel,
    gaussian_kernel,
    kernel_distance,
    median_distance,
    squared_mmd,
)
from gft_jax.metrics.neighbours import Prdc, label_accuracy, prdc
from gft_jax.metrics.path_geometry import (
    kinetic_energy,
    normalised_path_energy,
    path_length,
    pixel_path_length,
    straightness,
    velocity_variance,
)
from gft_jax.metrics.path_kl import path_kl
from gft_jax.metrics.resampling import (
    Interval,
    PermutationTest,
    confidence_interval,
    floor,
    permutation_test,
)
from gft_jax.metrics.retention import velocity_distance
from gft_jax.metrics.rows import NotFinite
from gft_jax.metrics.sinkhorn import SinkhornDivergence, sinkhorn_divergence
from gft_jax.metrics.stability import instantaneous_variance, spearman

__all__ = [
    "Interval",
    "Kernel",
    "NotFinite",
    "PermutationTest",
    "Prdc",
    "SinkhornDivergence",
    "classifier_accuracy",
    "confidence_interval",
    "cubic_kernel",
    "energy_distance",
    "extract_features",
    "floor",
    "frechet_distance",
    "gaussian_kernel",
    "instantaneous_variance",
    "kernel_distance",
    "kinetic_energy",
    "label_accuracy",
    "mean_pairwise_distance",
    "median_distance",
    "normalised_path_energy",
    "one_step_w2",
    "path_kl",
    "path_length",
    "permutation_test",
    "pixel_path_length",
    "prdc",
    "sinkhorn_divergence",
    "sliced_w2",
    "spearman",
    "squared_mmd",
    "straightness",
    "velocity_distance",
    "velocity_variance",
    "vendi_score",
    "w2",
]

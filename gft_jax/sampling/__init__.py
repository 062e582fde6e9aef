"""Samplers: from noise to data, and back; and the likelihood of data under a flow."""

from gft_jax.sampling import time_grids
from gft_jax.sampling.average import AverageSample, sample_average
from gft_jax.sampling.flow_map import flow_map
from gft_jax.sampling.likelihood import Hutchinson, Likelihood, bits_per_dimension, log_likelihood
from gft_jax.sampling.ode import OdeSample, sample_ode
from gft_jax.sampling.sde import SdeSample, sample_sde

__all__ = [
    "AverageSample",
    "Hutchinson",
    "Likelihood",
    "OdeSample",
    "SdeSample",
    "bits_per_dimension",
    "flow_map",
    "log_likelihood",
    "sample_average",
    "sample_ode",
    "sample_sde",
    "time_grids",
]

"""Samplers: from noise to data, and back."""

from gft_jax.sampling.ode import OdeSample, sample_ode

__all__ = ["OdeSample", "sample_ode"]

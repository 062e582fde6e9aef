"""Drift networks in Flax linen; `gft_jax.drifts.from_linen` makes drifts of them."""

from gft_jax.networks.mlp import ResidualMLP
from gft_jax.networks.sit import SiT
from gft_jax.networks.stacking import stacked, unstacked
from gft_jax.networks.unet import UNet

__all__ = ["ResidualMLP", "SiT", "UNet", "stacked", "unstacked"]

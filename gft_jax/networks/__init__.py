"""Drift networks in Flax linen; `gft_jax.drifts.from_linen` makes drifts of them."""

from gft_jax.networks import lora
from gft_jax.networks.condition_embedding import ConditionEmbedding, null_condition
from gft_jax.networks.convolution import conv_general_dilated
from gft_jax.networks.freezing import freeze, freeze_all_but
from gft_jax.networks.mlp import ResidualMLP
from gft_jax.networks.second_time import SecondTime, two_time_params
from gft_jax.networks.sit import SiT
from gft_jax.networks.stacking import stacked, unstacked
from gft_jax.networks.unet import UNet

__all__ = [
    "ConditionEmbedding",
    "ResidualMLP",
    "SecondTime",
    "SiT",
    "UNet",
    "conv_general_dilated",
    "freeze",
    "freeze_all_but",
    "lora",
    "null_condition",
    "stacked",
    "two_time_params",
    "unstacked",
]

"""Low-rank adaptation (LoRA) of pretrained networks, by patterns of the names of their parameters."""

from gft_jax.networks.lora.factors import Difference, Factors, Settings
from gft_jax.networks.lora.low_rank import LoRAParams, LowRank, low_rank

__all__ = ["Difference", "Factors", "LoRAParams", "LowRank", "Settings", "low_rank"]

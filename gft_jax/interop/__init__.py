"""Parameters from and to state dicts of PyTorch: of SiT and DiT, and of your own model by rules."""

from gft_jax.interop.files import read_state_dict, write_state_dict
from gft_jax.interop.rules import AS_IS, CONVOLUTION, LINEAR, Layout, Rule, exported, imported, layer
from gft_jax.interop.sit import sit_of, sit_params, sit_state_dict

__all__ = [
    "AS_IS",
    "CONVOLUTION",
    "LINEAR",
    "Layout",
    "Rule",
    "exported",
    "imported",
    "layer",
    "read_state_dict",
    "sit_of",
    "sit_params",
    "sit_state_dict",
    "write_state_dict",
]

"""How the parameters of `gft_jax.networks.SiT` are split over a mesh."""

import re

from jax.sharding import PartitionSpec

from gft_jax.parallel.meshes import ShardingRule, split_along
from gft_jax.sampling.arguments import checked_count

# Their inputs are what attention, or the perceptron's first layer, gives out in parts.
_BY_INPUTS = re.compile(r"\['(proj|fc2)'\]\['kernel'\]$")
_STACKED = re.compile(r"\['blocks'\]\['\w+'\]\['\w+'\]$")


def sit_rule(num_parts: int, *, min_size: int = 4096) -> ShardingRule:
    """Splits the parameters of a SiT over "fsdp" by features: those that a layer gives out, or takes.

    Layers that open a branch (``qkv``, ``fc1``, modulations, embeddings) are split along their outputs, those that
    close it (``proj``, ``fc2``) along their inputs; so the hidden features of the perceptron lie alike in both. (Those
    of ``qkv`` are queries, keys and values one after another, which a split does not cut into heads.) Where that axis
    does not divide, the other one is split. Of blocks that are stacked for a loop (``scan=True``) the axis of the
    blocks is never split: every turn of the loop then has a part from each device, where `over_fsdp` could give a
    whole block to one.

    Arrays of less than ``min_size`` entries, and those without an axis that divides, are whole on every device.
    Moments, average and base are split as their parameter is.

    Args:
        num_parts: size of the axis "fsdp".
        min_size: fewest entries of an array that is split.

    Raises:
        ValueError: for a number below one.
    """
    num_parts, min_size = checked_count("num_parts", num_parts), checked_count("min_size", min_size)

    def rule(name: str, shape: tuple[int, ...]) -> PartitionSpec:
        axes = [*range(len(shape))][1 if _STACKED.search(name) else 0 :]
        # The outputs are the last axis, the inputs the one before.
        preferred = sorted(axes[-2:], reverse=not _BY_INPUTS.search(name)) + axes[:-2]
        return split_along(preferred, shape, num_parts, min_size)

    return rule

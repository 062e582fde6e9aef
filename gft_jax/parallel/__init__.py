"""Compiled fine-tuners, on one device or on many, of one process or of several.

``single_device`` and ``pmapped`` compile the same step for one device and for all, each with a copy of the state;
``sharded`` spreads parameters, base and optimiser state over the axis "fsdp" of a ``mesh`` as well. All three give the
same run from the same seed, up to the order of sums, since every row carries its own key. Over several
processes (``start``) each reads its ``share`` of every batch.
"""

from gft_jax.parallel.mapped import AXIS, pmapped
from gft_jax.parallel.meshes import ShardingRule, mesh, over_fsdp
from gft_jax.parallel.processes import is_main, leave, share, start
from gft_jax.parallel.runner import Runner, single_device
from gft_jax.parallel.sharding import sharded
from gft_jax.parallel.transformers import sit_rule

__all__ = [
    "AXIS",
    "Runner",
    "ShardingRule",
    "is_main",
    "leave",
    "mesh",
    "over_fsdp",
    "pmapped",
    "sharded",
    "share",
    "single_device",
    "sit_rule",
    "start",
]

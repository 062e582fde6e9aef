"""The way of the data: dataset rows -> source rows drawn -> coupling -> `gft_jax.Batch`.

``batches`` makes an endless stream of training batches from a dataset, addressed by the training step: the order of the
rows is a pure function of (seed, step), so that the step number is the position in the data; nothing of it needs to be
saved, and a resumed run sees the same batches. ``ahead`` computes the batches of the coming steps while the device
trains. ``chosen_batches`` chooses the data out of the whole dataset for the sources drawn. ``source_batches`` has no
data, ``interleaved`` mixes two streams. Of several processes each reads its `Share` of every batch.
"""

from gft_jax.pairing.ahead import ahead
from gft_jax.pairing.chosen import chosen_batches
from gft_jax.pairing.interleaved import interleaved
from gft_jax.pairing.order import Share, row_keys, row_order
from gft_jax.pairing.shares import share_of
from gft_jax.pairing.source_stream import source_batches
from gft_jax.pairing.sources import Source, rows_of, standard_normal
from gft_jax.pairing.stream import Batches, batches

__all__ = [
    "Batches",
    "Share",
    "Source",
    "ahead",
    "batches",
    "chosen_batches",
    "interleaved",
    "row_keys",
    "row_order",
    "rows_of",
    "share_of",
    "source_batches",
    "standard_normal",
]

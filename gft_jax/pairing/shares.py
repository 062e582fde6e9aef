"""A share of a stream that reads whole batches: one plan over the rows of all processes."""

import jax

from gft_jax.pairing.order import Share
from gft_jax.pairing.stream import Batches
from gft_jax.types import Batch


def share_of(stream: Batches, share: Share) -> Batches:
    """The rows of a share, out of the batches of a stream that was made for all rows.

    Every process reads and pairs the whole batch, by the same plan, and gives its share of the pairs: what
    ``share=`` of `batches` does without, at the price of longer paths. The processes must be of one kind: where they
    round otherwise, near-equal plans may differ, and a row be used twice. ``pairing`` and ``diagnose`` are those of the
    whole batch.

    Args:
        stream: of whole batches.
        share: which rows (`gft_jax.parallel.share`).

    Raises:
        ValueError: from the first batch, for a share that there is not, or rows that do not divide evenly.
    """

    def of(batch: Batch, axis: int) -> Batch:
        own = share.rows(batch.x0.shape[axis])
        return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (own,)], batch)

    return stream._replace(
        batch=lambda step: of(stream.batch(step), 0),
        many=lambda first, count: of(stream.many(first, count), 1),
    )

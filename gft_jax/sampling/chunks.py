"""Chunking: more rows than fit into the device's memory, a few at a time."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from tqdm import tqdm

from gft_jax.sampling.arguments import checked_count


def in_chunks(sample: Callable[[Any], Any], rows: Any, chunk_size: int, axes: Any, progress: bool) -> Any:
    """Results of a sampler on rows, found a chunk at a time and joined on the host, in NumPy arrays.

    Each chunk has ``min(chunk_size, num)`` rows: the last is filled up with copies of the last row, whose results
    are dropped, so that all chunks run the same program. What a sampler says of a chunk as a whole (leaves without
    axes: counts, status) becomes one value for each of its rows.

    Args:
        sample: chunk of rows -> a NamedTuple of results, a pure function of them.
        rows: pytree of ``[num, ...]``, the same number in all leaves.
        chunk_size: rows of a chunk, >= 1.
        axes: which axis of each field of the results runs over the rows.
        progress: whether to show a bar of the rows that are done.

    Raises:
        ValueError: for a chunk size that is no positive integer, or under jit, where nothing can be moved to the
            host.
    """
    num_rows = len(jax.tree.leaves(rows)[0])
    size = min(checked_count("chunk_size", chunk_size), num_rows)
    pieces = []
    with tqdm(total=num_rows, unit="row", disable=not progress) as bar:
        for start in range(0, num_rows, size):
            index = np.minimum(np.arange(start, start + size), num_rows - 1)
            piece = sample(jax.tree.map(lambda leaf, index=index: leaf[index], rows))
            if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(piece)):
                raise ValueError(
                    "chunks are a loop on the host, which jit cannot trace: call the sampler outside of jit."
                )
            piece = jax.device_get(piece)
            pieces.append(jax.tree.map(lambda leaf: np.full(size, leaf) if leaf.ndim == 0 else leaf, piece))
            bar.update(min(size, num_rows - start))

    def join(axis: int, *fields: Any) -> Any:
        def of_leaves(*leaves: np.ndarray) -> np.ndarray:
            joined = np.concatenate(leaves, axis)
            return joined[(slice(None),) * axis + (slice(num_rows),)]

        return jax.tree.map(of_leaves, *fields)

    return jax.tree.map(join, axes, *pieces)

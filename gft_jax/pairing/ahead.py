"""Batches computed ahead of the training step, by a thread of their own."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp

from gft_jax.pairing.checks import check_integer, checked_step, checked_steps
from gft_jax.pairing.stream import Batches
from gft_jax.types import Batch


@contextmanager
def ahead(
    stream: Batches, *, depth: int = 2, num_steps: int | None = None, device: Any = None
) -> Iterator[Batches]:
    """The same stream, whose next batches are computed while the device trains::

        stream = gft.pairing.batches(data, batch_size=256, seed=0, coupling=gft.couplings.exact(), pair_size=4096)
        with gft.pairing.ahead(stream, num_steps=10_000) as batches:
            for step in range(10_000):
                state, info = tuner.step(state, base_params, batches.batch(step))

    Whenever a batch is asked for, the ``depth`` requests that would follow it, of as many steps each, are computed by
    one thread. As a batch is a function of the step alone, what is computed ahead changes nothing but the time: the
    batches are those of the stream bit for bit, in whatever order they are asked for, and a run that resumes at some
    step has them from there on. A request that was not foreseen is computed when it is made. An error in a batch is
    raised when this batch is asked for.

    Rows that lie in files (`gft_jax.data`) are read and decoded by that thread and put on the device there, so that a
    batch is on the device when it is asked for.

    It helps where something is idle while the other works: the host while an accelerator trains, a core that the
    training step leaves free. What takes longer than the training steps it serves cannot be hidden: then the
    time is that of the pairing.

    Args:
        stream: of `batches`, or any other.
        depth: requests computed ahead, >= 1. Each holds its batches in memory. With a ``pair_size`` of k batches, a
            pairing is begun ``depth`` steps (or chunks) before its first batch is needed: k steps of depth hide it.
        num_steps: end of the run: no step from here on is computed ahead; None for an endless one.
        device: where batches are computed, such as ``jax.devices("cpu")[0]`` beside an accelerator, to which they are
            then moved; None for the default device.

    Yields:
        A stream, until the block is left; asked for a batch afterwards it raises RuntimeError.

    Raises:
        ValueError: for ``depth`` < 1, or ``num_steps`` < 0.
    """
    check_integer("depth", depth, 1)
    if num_steps is not None:
        check_integer("num_steps", num_steps, 0)
    target = jnp.zeros(()).devices().pop()  # the default one

    def compute(request: tuple[int, int | None]) -> Batch:
        first, count = request
        with nullcontext() if device is None else jax.default_device(device):
            batch = stream.batch(first) if count is None else stream.many(first, count)
        # Waits for the result, so that no more than one request is on the device at a time.
        return jax.block_until_ready(batch if device is None else jax.device_put(batch, target))

    with ThreadPoolExecutor(1, thread_name_prefix="gft_jax.pairing.ahead") as worker:
        queue = _Queue(compute, worker, depth, num_steps)
        try:
            yield stream._replace(
                batch=lambda step: queue.get((checked_step(step), None)),
                many=lambda first, count: queue.get((checked_step(first), checked_steps(count))),
            )
        finally:
            queue.close()


class _Queue:
    """Requests ``(first step, count or None for a single batch)`` that are done or on their way."""

    def __init__(
        self,
        compute: Callable[[tuple[int, int | None]], Batch],
        worker: ThreadPoolExecutor,
        depth: int,
        num_steps: int | None,
    ):
        self._compute, self._worker = compute, worker
        self._depth, self._num_steps = depth, num_steps
        self._pending: dict[tuple[int, int | None], Future[Batch]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Drops what has not begun; what has begun ends before the block is left."""
        with self._lock:
            self._closed = True
            self._pending.clear()
            self._worker.shutdown(wait=False, cancel_futures=True)

    def get(self, request: tuple[int, int | None]) -> Batch:
        with self._lock:
            if self._closed:
                raise RuntimeError(
                    "the block of gft_jax.pairing.ahead is left: ask for batches inside it, or ask the stream itself"
                )
            wanted = [request, *self._following(request)]
            for old in self._pending.keys() - set(wanted):
                self._pending.pop(old).cancel()
            for each in wanted:
                if each not in self._pending:
                    self._pending[each] = self._worker.submit(self._compute, each)
            future = self._pending.pop(request)
        return future.result()

    def _following(self, request: tuple[int, int | None]) -> list[tuple[int, int | None]]:
        first, count = request
        size = 1 if count is None else count
        following = [(first + ahead * size, count) for ahead in range(1, self._depth + 1)]
        if self._num_steps is None:
            return following
        # The last chunk of a run may be shorter than the others.
        return [
            (start, None if count is None else min(count, self._num_steps - start))
            for start, _ in following
            if start < self._num_steps
        ]

"""What devices, checkpoints and log add to the training steps of the residual MLP on digits.

Checkpoints are those of the training loop: of the whole state, with checksums, written in the background while the next
steps are taken; the time of a block ends with its steps, and what is still being written then falls into the next
block of this entrant, which waits for it before it saves. Rows of the log are made from the reports of a chunk, which
come to the host in one piece, so a row for every step costs its text alone.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gft_jax as gft
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.benchmarks.library import BATCH_SIZE, Work, plain, work
from experiments.data.digits import shifted_digits
from experiments.loop import Loop
from experiments.run_folder import RunFolder
from gft_jax.checkpoints import Checkpoints
from gft_jax.parallel import Runner

CHUNK = 100
TITLE = f"What devices, checkpoints and log add to a step: residual MLP on digits, batch {BATCH_SIZE}"

_COMPARISONS = [
    Comparison("pmap over one device / jit, single steps", "pmap", "jit", at_most=1.03),
    Comparison("pmap over one device / jit, chunks", "pmap, chunks", "chunks", at_most=1.03),
    Comparison(f"a checkpoint every {CHUNK} steps / none", "checkpoints", "chunks", at_most=1.05),
    Comparison(
        f"a row of the log every step / every {CHUNK}", "rows of steps", "rows of chunks", at_most=1.02
    ),
]


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """Ratios of the times of a step, with and without each."""
    digits, outcomes = shifted_digits("unseen-classes", 512).target, []
    for width in widths:
        print(f"measuring width {width}", file=sys.stderr)
        shared = work(gft.networks.ResidualMLP(hidden=width), digits, BATCH_SIZE, CHUNK)
        with (
            tempfile.TemporaryDirectory() as folder,
            Checkpoints(Path(folder) / "checkpoints") as checkpoints,
        ):
            entrants = _entrants(shared, digits, checkpoints, RunFolder(Path(folder)))
            seconds = seconds_per_step(entrants, rounds_at(width, rounds))
        outcomes += [compare(f"width {width}", asked, seconds) for asked in _COMPARISONS]
    return outcomes


def _entrants(shared: Work, x1: np.ndarray, checkpoints: Checkpoints, run: RunFolder) -> dict[str, Entrant]:
    single = gft.parallel.single_device(plain(shared))
    mapped = gft.parallel.pmapped(plain(shared), jax.local_devices()[:1])

    def by_steps(runner: Runner) -> Entrant:
        state = _start(runner, shared)

        def take() -> None:
            nonlocal state
            for batch in shared.batches:
                state, _ = runner.step(state, None, batch)
            jax.block_until_ready(state)

        return Entrant(take, CHUNK)

    def by_chunks(runner: Runner, then: Callable[[Any, Any], object] = lambda state, infos: None) -> Entrant:
        state = _start(runner, shared)

        def take() -> None:
            nonlocal state
            state, infos = runner.step_many(state, None, shared.stacked)
            then(state, jax.device_get(infos))

        return Entrant(take, CHUNK)

    saves = itertools.count()

    def rows_of(every: int) -> Entrant:
        loop = Loop(
            run=run,
            method="plain",
            seed=0,
            runner=single,
            stream=gft.pairing.batches(x1, batch_size=BATCH_SIZE, seed=0),
            num_steps=CHUNK,
            chunk=CHUNK,
            rate_flag="",
            evaluated=lambda params, base_params: params,
            log_every=every,
        )
        return by_chunks(single, lambda state, infos: run.log(loop.train_rows(infos, CHUNK)))

    return {
        "jit": by_steps(single),
        "pmap": by_steps(mapped),
        "chunks": by_chunks(single),
        "pmap, chunks": by_chunks(mapped),
        "checkpoints": by_chunks(single, lambda state, infos: checkpoints.save(next(saves), state)),
        "rows of steps": rows_of(1),
        "rows of chunks": rows_of(CHUNK),
    }


def _start(runner: Runner, shared: Work) -> Any:
    return runner.init(jax.random.key(0), None, shared.params)

"""Training steps whose batches are coupled ahead of them, beside steps without any coupling.

The network is the MLP of three hidden layers, the data are moons in the plane, batches have 256 rows, 1024 rows are
coupled at once, and steps are taken in chunks of 16, that is of four pairings. Each entrant trains from the same state
through all of its chunks; one with prefetching waits for its first chunk, and that is in its time. The L1 error is the
largest marginal error of the pairings of the first chunk.

All of JAX's programs share the threads of one pool, and a training step takes as many of them as there are. So *a core
is free* is measured as one core more than what it is compared with: training alone on one core, against training and
pairing on two. *No core is free*: both on one, or training alone on two, against both on two. The threads of the
process are moved between the cores. Training alone on one core has therefore a thread too many in its pool, which costs
it a little, and makes the first ratio smaller than against a process that has had one core from its start.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import gft_jax as gft
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.plain_mlp import PlainMLP, moons
from gft_jax.couplings import Coupling
from gft_jax.pairing import Batches
from gft_jax.parallel import Runner
from gft_jax.types import Params

BATCH_SIZE, PAIR_SIZE, CHUNK = 256, 1024, 16
TITLE = f"Prefetching: plain MLP, batch {BATCH_SIZE}, pairings of {PAIR_SIZE} rows"
AT_MOST = 1.15
"""How many times as long as without a coupling a step with prefetched pairs may take, where a core is free."""
_THREADS = Path("/proc/self/task")


def _comparisons(name: str) -> list[Comparison]:
    """Of a coupling with none."""
    asked = AT_MOST if name == "sinkhorn" else None
    ahead = f"{name}, prefetched"
    return [
        Comparison(
            f"{ahead}, two cores / uncoupled, one core (a core is free)", f"{ahead} 2", "none 1", asked
        ),
        Comparison(f"{ahead} / uncoupled, one core (none is free)", f"{ahead} 1", "none 1"),
        Comparison(f"{ahead} / uncoupled, two cores (none is free)", f"{ahead} 2", "none 2"),
        Comparison(f"{name}, not prefetched / uncoupled, two cores", f"{name} 2", "none 2"),
    ]


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """Time of a step with pairs, prefetched and not, over that of a step without a coupling.

    Raises:
        ValueError: where threads cannot be kept to cores, or there is one core alone; for pairs that did not
            converge.
    """
    if not _THREADS.exists() or len(os.sched_getaffinity(0)) < 2:
        raise ValueError(
            "prefetching is measured on one and two cores of a Linux machine: run it there, without --one-core"
        )
    couplings: dict[str, tuple[Coupling, int]] = {
        "sinkhorn": (gft.couplings.sinkhorn(), 30),
        # A chunk takes seconds, beside which the steps of another, all that could be hidden, are nothing.
        "exact": (gft.couplings.exact(), 1),
    }
    outcomes = []
    for width in widths:
        print(f"measuring width {width}", file=sys.stderr)
        module, data = PlainMLP(width), moons()
        params = module.init(jax.random.key(0), jnp.zeros(1), data[:1])["params"]
        objective = gft.objectives.flow_matching(gft.drifts.from_linen(module))
        runner = gft.parallel.single_device(gft.finetuner(objective, optax.adam(1e-3)))
        uncoupled = gft.pairing.batches(data, batch_size=BATCH_SIZE, seed=0)
        entrants = {
            f"none {cores}": _entrant(runner, params, uncoupled, 30, cores, False) for cores in (1, 2)
        }
        errors = {}
        for name, (coupling, num_chunks) in couplings.items():
            stream = gft.pairing.batches(
                data, batch_size=BATCH_SIZE, seed=0, coupling=coupling, pair_size=PAIR_SIZE
            )
            errors[name] = max(
                _marginal_error(stream, step) for step in range(0, CHUNK, PAIR_SIZE // BATCH_SIZE)
            )
            for cores in (1, 2):
                entrants |= {
                    f"{name} {cores}": _entrant(runner, params, stream, num_chunks, cores, False),
                    f"{name}, prefetched {cores}": _entrant(runner, params, stream, num_chunks, cores, True),
                }
        seconds = seconds_per_step(entrants, rounds_at(width, rounds), warm_ups=1)
        for name, error in errors.items():
            setting = f"width {width}, L1 error {error:.1e}"
            outcomes += [compare(setting, asked, seconds) for asked in _comparisons(name)]
    return outcomes


def _marginal_error(stream: Batches, step: int) -> float:
    return float(gft.couplings.require_converged(stream.pairing(step)).marginal_error)


def _entrant(
    runner: Runner, params: Params, batches: Batches, num_chunks: int, cores: int, prefetched: bool
) -> Entrant:
    num_steps = num_chunks * CHUNK

    def run() -> None:
        state = runner.init(jax.random.key(0), params=params)
        make: Callable[..., contextlib.AbstractContextManager[Batches]] = (
            gft.pairing.ahead if prefetched else lambda stream, **options: contextlib.nullcontext(stream)
        )
        with _on_cores(cores), make(batches, depth=1, num_steps=num_steps) as steps:
            for first in range(0, num_steps, CHUNK):
                state, _ = runner.step_many(state, None, steps.many(first, CHUNK))
                jax.block_until_ready(state)

    return Entrant(run, num_steps)


@contextlib.contextmanager
def _on_cores(number: int) -> Iterator[None]:
    """Keeps all threads of the process to so many of its cores."""
    allowed = os.sched_getaffinity(0)
    _move(set(sorted(allowed)[:number]))
    try:
        yield
    finally:
        _move(allowed)


def _move(cores: set[int]) -> None:
    for thread in _THREADS.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)

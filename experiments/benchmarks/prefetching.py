"""Training steps whose batches are coupled ahead of them, beside steps without any coupling.

The network is the MLP of three hidden layers, the data are moons in the plane, batches have 256 rows, 1024 rows are
coupled at once, and steps are taken in chunks of 16, that is of four pairings. Each entrant trains from the same state
through all of its chunks; one with prefetching waits for its first chunk, and that is in its time.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gft_jax as gft
from experiments.benchmarks.interleaved import Comparison, Entrant, Outcome, compare, seconds_per_step
from experiments.plain_mlp import PlainMLP, moons
from gft_jax.couplings import Coupling
from gft_jax.pairing import Batches
from gft_jax.types import Params

BATCH_SIZE, PAIR_SIZE, CHUNK = 256, 1024, 16
TITLE = f"Prefetching: plain MLP, batch {BATCH_SIZE}, pairings of {PAIR_SIZE} rows"
AT_MOST = 1.15
"""How many times as long as without a coupling a step with prefetched pairs may take, where a core is free."""
COUPLINGS: dict[str, tuple[Callable[[], Coupling], int]] = {
    "sinkhorn": (gft.couplings.sinkhorn, 30),
    "exact": (gft.couplings.exact, 2),
}
"""How each is made, and the number of chunks it trains for: fewer where each takes seconds."""


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """Time of a step with pairs, prefetched and not, over that of a step without a coupling."""
    outcomes = []
    for width in widths:
        print(f"measuring width {width}", file=sys.stderr)
        module = PlainMLP(width)
        data = moons()
        params = module.init(jax.random.key(0), jnp.zeros(1), data[:1])["params"]
        objective = gft.objectives.flow_matching(gft.drifts.from_linen(module))
        runner = gft.parallel.single_device(gft.finetuner(objective, optax.adam(1e-3)))

        def stream(coupling: Coupling | None, data: np.ndarray = data) -> Batches:
            size = None if coupling is None else PAIR_SIZE
            return gft.pairing.batches(data, batch_size=BATCH_SIZE, seed=0, coupling=coupling, pair_size=size)

        def entrant(
            batches: Batches,
            prefetched: bool,
            num_chunks: int = 30,
            runner: gft.parallel.Runner = runner,
            params: Params = params,
        ) -> Entrant:
            num_steps = num_chunks * CHUNK

            def run() -> None:
                state = runner.init(jax.random.key(0), params=params)
                ahead = gft.pairing.ahead(batches, depth=1, num_steps=num_steps)
                with ahead if prefetched else contextlib.nullcontext(batches) as steps:
                    for first in range(0, num_steps, CHUNK):
                        state, _ = runner.step_many(state, None, steps.many(first, CHUNK))
                        jax.block_until_ready(state)

            return Entrant(run, num_steps)

        entrants = {"none": entrant(stream(None), False), "none, prefetched": entrant(stream(None), True)}
        for name, (make, num_chunks) in COUPLINGS.items():
            batches = stream(make())
            for label, prefetched in ((name, False), (f"{name}, prefetched", True)):
                entrants[label] = entrant(batches, prefetched, num_chunks)
        seconds = seconds_per_step(entrants, rounds, warm_ups=1)
        for name in entrants:
            if name != "none":
                most = AT_MOST if name == "sinkhorn, prefetched" else None
                asked = Comparison(f"{name} / no coupling", name, "none", at_most=most)
                outcomes.append(compare(f"width {width}", asked, seconds))
    return outcomes

"""Updates of deterministic adjoint matching: truncated beside full adjoints, and what cheaper paths add.

The reward is the brightness of digits, the network the library's residual MLP at random parameters, base and student
alike; a step of time is one update of the optimiser, with its share of path and adjoint.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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
from experiments.benchmarks.variants import FULL, NUM_STEPS, VARIANTS, Variant, objective_of
from gft_jax.loading import init_params
from gft_jax.types import Drift

BATCH_SIZE = 128
TITLE = f"Adjoint matching: residual MLP on digits of 64 pixels, {NUM_STEPS} Euler steps, batch {BATCH_SIZE}"
ASKED = {"truncated": 4.3}
"""How many times as fast as the full adjoint each is to be, where something is asked."""
_EVENT = (8, 8)
_ROW_BY_ROW = {
    name: VARIANTS[name]._replace(options={**VARIANTS[name].options, "row_by_row": True})
    for name in (FULL, "truncated")
}
"""The same with the path's drift evaluated on single rows, which share what depends on the time alone."""


def entrant(variant: Variant, drift: Drift, params: Any, batch: gft.Batch) -> Entrant:
    """One step of training on a batch, which is as many updates as the variant takes on a path."""
    objective = objective_of(variant, drift, gft.rewards.brightness, 0.1)
    tuner = gft.finetuner(objective, optax.adam(1e-5), averaging=None, num_updates=variant.num_updates)
    runner = gft.parallel.single_device(tuner)
    state = runner.init(jax.random.key(0), params)

    def run() -> None:
        nonlocal state
        state, _ = runner.step(state, params, batch)
        jax.block_until_ready(state)

    return Entrant(run, variant.num_updates)


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """The full adjoint's time over that of cheaper ones, at each width."""
    by_row = ", row by row"
    asked = [
        Comparison(f"full / {variant.words}", FULL, name, at_least=ASKED.get(name))
        for name, variant in VARIANTS.items()
        if name != FULL
    ]
    words = VARIANTS["truncated"].words
    asked += [
        Comparison(
            f"full / {words}, both row by row",
            FULL + by_row,
            "truncated" + by_row,
            at_least=ASKED["truncated"],
        ),
        Comparison(f"{words} / the same row by row", "truncated", "truncated" + by_row),
        Comparison("full / the same row by row", FULL, FULL + by_row),
    ]
    outcomes = []
    for width in widths:
        print(f"measuring width {width}", file=sys.stderr)
        module = gft.networks.ResidualMLP(hidden=width)
        drift = gft.drifts.from_linen(module)
        params = init_params(module, jax.random.key(0), _EVENT)
        params = jax.tree.map(lambda leaf: leaf + np.float32(0.01), params)
        stream = gft.pairing.source_batches(
            gft.pairing.standard_normal(_EVENT), batch_size=BATCH_SIZE, seed=0
        )
        batch = stream.batch(0)
        variants = dict(VARIANTS) | {name + by_row: variant for name, variant in _ROW_BY_ROW.items()}
        entrants = {name: entrant(variant, drift, params, batch) for name, variant in variants.items()}
        seconds = seconds_per_step(entrants, rounds_at(width, rounds))
        outcomes += [compare(f"width {width}", comparison, seconds) for comparison in asked]
    return outcomes

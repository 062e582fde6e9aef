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
from gft_jax.loading import init_params

BATCH_SIZE = 128
NUM_STEPS = 50
TRUNCATION = 3
TITLE = f"Adjoint matching: residual MLP on digits of 64 pixels, {NUM_STEPS} Euler steps, batch {BATCH_SIZE}"
ASKED = 4.3
"""How many times as fast as the full adjoint the truncated one is to be."""
_EVENT = (8, 8)
_COARSE = np.append(
    np.linspace(0.0, 1 - TRUNCATION / NUM_STEPS, 11)[:-1], 1 - np.arange(TRUNCATION, -1, -1) / NUM_STEPS
)
"""Ten steps up to where the last three of fifty begin."""
_UPDATES = 4


def entrant(drift: Any, params: Any, batch: gft.Batch, num_updates: int, **options: Any) -> Entrant:
    """One step of training on a batch, which is as many updates."""
    method = gft.objectives.adjoint_matching(drift, gft.rewards.brightness, cost_weight=0.1, **options)
    tuner = gft.finetuner(method, optax.adam(1e-5), averaging=None, num_updates=num_updates)
    runner = gft.parallel.single_device(tuner)
    state = runner.init(jax.random.key(0), params)

    def run() -> None:
        nonlocal state
        state, _ = runner.step(state, params, batch)
        jax.block_until_ready(state)

    return Entrant(run, num_updates)


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """The full adjoint's time over that of cheaper ones, at each width."""
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
        truncated = {"truncation": TRUNCATION}
        entrants = {
            "full": entrant(drift, params, batch, 1, num_steps=NUM_STEPS, unroll=NUM_STEPS),
            "truncated": entrant(drift, params, batch, 1, num_steps=NUM_STEPS, **truncated),
            "coarse": entrant(drift, params, batch, 1, times=_COARSE, **truncated),
            "reused": entrant(drift, params, batch, _UPDATES, num_steps=NUM_STEPS, **truncated),
            "both": entrant(drift, params, batch, _UPDATES, times=_COARSE, **truncated),
        }
        asked = [
            Comparison(f"full / last {TRUNCATION} steps", "full", "truncated", at_least=ASKED),
            Comparison("full / the same, 10 steps before them in place of 47", "full", "coarse"),
            Comparison(f"full / the same, {_UPDATES} updates on a path", "full", "reused"),
            Comparison("full / both", "full", "both"),
        ]
        seconds = seconds_per_step(entrants, rounds_at(width, rounds))
        outcomes += [compare(f"width {width}", comparison, seconds) for comparison in asked]
    return outcomes

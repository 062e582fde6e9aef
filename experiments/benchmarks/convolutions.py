"""Path and adjoint of a small convolutional network, beside the same products written out by hand.

On CPU, XLA's gradient of a convolution is slow inside a loop, so the library writes the adjoint's steps out, as many as
its ``unroll``; the last row of the table shows what a loop would cost. Forward evaluations may loop.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

import gft_jax as gft
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from gft_jax.types import Drift

NUM_STEPS, BATCH_SIZE, SIDE = 3, 32, 16
COST_WEIGHT = 0.1
TITLE = (
    f"Convolutions: path and adjoint of {NUM_STEPS} steps, three layers of 3 x 3, "
    f"{BATCH_SIZE} images of {SIDE} x {SIDE} pixels"
)
AT_MOST = 1.5
"""How many times as long as by hand the library may take."""
_TOLERANCE = 1e-5

Program = Callable[[Any, Any, gft.Batch], dict[str, jax.Array]]
"""``(params, base_params, batch)`` -> what is regressed on, by name, ``[rows, steps, *event]``."""


class Convolutional(linen.Module):
    """Velocity of three convolutions of 3 x 3, the last with one channel."""

    channels: int = 16

    @linen.compact
    def __call__(self, t: jax.Array, x: jax.Array, cond: Any = None) -> jax.Array:
        """Velocity ``[batch, height, width]`` at times ``[batch]``."""
        h = linen.Conv(self.channels, (3, 3))(x[..., None]) + t[:, None, None, None]
        h = linen.Conv(self.channels, (3, 3))(linen.silu(h))
        return linen.Conv(1, (3, 3))(linen.silu(h))[..., 0]


def by_library(drift: Drift, **options: Any) -> Program:
    """What the objective prepares, by default or with options of `gft.objectives.adjoint_matching`."""
    objective = gft.objectives.adjoint_matching(
        drift, gft.rewards.brightness, cost_weight=COST_WEIGHT, num_steps=NUM_STEPS, **options
    )

    @jax.jit
    def program(params: Any, base_params: Any, batch: gft.Batch) -> dict[str, jax.Array]:
        rows = objective.prepare(params, base_params, (), batch, jnp.zeros(()))
        return {"x": rows.x, "base_velocity": rows.base_velocity, "control": rows.control}

    return program


def by_hand(drift: Drift) -> Program:
    """The same without the library: a bare loop for the path, and its products one after another."""
    grid, h = np.linspace(0, 1, NUM_STEPS + 1, dtype=np.float32), np.float32(1 / NUM_STEPS)

    @jax.jit
    def program(params: Any, base_params: Any, batch: gft.Batch) -> dict[str, jax.Array]:
        def step(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            after = x + h * drift(params, jnp.full(len(x), t), x)
            return after, after

        _, after = jax.lax.scan(step, batch.x0, jnp.asarray(grid[:-1]))
        states = jnp.concatenate([batch.x0[None], after])
        adjoint = jax.grad(lambda x: jnp.sum(gft.rewards.brightness(x)))(states[-1])
        found = []
        for k in reversed(range(NUM_STEPS)):
            x, times = states[k], jnp.full(BATCH_SIZE, grid[k])
            velocity, pull = jax.vjp(lambda x, times=times: drift(base_params, times, x), x)
            found.append((x, velocity, adjoint / COST_WEIGHT))
            adjoint = adjoint + h * pull(adjoint)[0]
        columns = (jnp.stack(leaves, axis=1) for leaves in zip(*reversed(found), strict=True))
        return dict(zip(("x", "base_velocity", "control"), columns, strict=True))

    return program


def check_agreement(first: dict[str, jax.Array], second: dict[str, jax.Array]) -> None:
    """Refuses programs that do not compute the same, relative to the largest entry.

    Raises:
        ValueError: naming what differs.
    """
    for name, values in first.items():
        difference = float(jnp.max(jnp.abs(values - second[name])) / jnp.max(jnp.abs(values)))
        if not difference <= _TOLERANCE:
            raise ValueError(
                f"nothing is measured, since library and hand-written program differ in {name} by {difference:.2g}"
            )


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """The library's time, written out and in a loop, over that by hand; a width is a number of channels.

    Raises:
        ValueError: if they do not compute the same.
    """
    outcomes = []
    for channels in widths:
        print(f"measuring {channels} channels", file=sys.stderr)
        module = Convolutional(channels)
        drift = gft.drifts.from_linen(module)
        source = gft.pairing.standard_normal((SIDE, SIDE))
        batch = gft.pairing.source_batches(source, batch_size=BATCH_SIZE, seed=0).batch(0)
        params, base_params = (
            module.init(jax.random.key(seed), jnp.zeros(BATCH_SIZE), batch.x0)["params"] for seed in (0, 1)
        )
        programs = {
            "written out": by_library(drift),
            "looped": by_library(drift, unroll=1),
            "by hand": by_hand(drift),
        }
        for name in ("written out", "looped"):
            check_agreement(*(programs[each](params, base_params, batch) for each in (name, "by hand")))

        def entrant(program: Program, *arguments: Any) -> Entrant:
            return Entrant(lambda: jax.block_until_ready(program(*arguments)), 1)

        entrants = {name: entrant(program, params, base_params, batch) for name, program in programs.items()}
        seconds = seconds_per_step(entrants, rounds_at(channels, rounds))
        asked = [
            Comparison("library / by hand", "written out", "by hand", at_most=AT_MOST),
            Comparison("library, adjoint in a loop (unroll=1) / by hand", "looped", "by hand"),
        ]
        outcomes += [compare(f"{channels} channels", comparison, seconds) for comparison in asked]
    return outcomes

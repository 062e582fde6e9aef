"""On-policy paths by fixed steps, of which only the last are kept: what reward fine-tuning starts from."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gft_jax.drifts import evaluate
from gft_jax.sampling import time_grids
from gft_jax.types import Drift

Step = Callable[[Callable[[Array, Array], Array], Array, Array, Array], tuple[Array, Array]]
"""``(velocity, t, h, x)`` -> ``(x after the step, velocity at its beginning)``; velocity: ``(t, x)`` -> like x."""


def euler(velocity: Callable[[Array, Array], Array], t: Array, h: Array, x: Array) -> tuple[Array, Array]:
    """``x + h v(t, x)``."""
    first = velocity(t, x)
    return x + h * first, first


def heun(velocity: Callable[[Array, Array], Array], t: Array, h: Array, x: Array) -> tuple[Array, Array]:
    """``x + (h / 2) (v(t, x) + v(t + h, x + h v(t, x)))``."""
    first = velocity(t, x)
    return x + 0.5 * h * (first + velocity(t + h, x + h * first)), first


def step_of(solver: diffrax.AbstractSolver) -> Step:
    """The step of a solver of Diffrax.

    Raises:
        ValueError: for a solver other than Euler and Heun.
    """
    if isinstance(solver, diffrax.Euler):
        return euler
    if isinstance(solver, diffrax.Heun):
        return heun
    found = f"the class {solver.__name__}" if isinstance(solver, type) else type(solver).__name__
    raise ValueError(f"solver must be diffrax.Euler() or diffrax.Heun(), got {found}")


def last_states(
    advance: Callable[[Array, tuple[Array, Array, Array]], Array],
    x0: Float[Array, "batch *event"],
    grid: Float[np.ndarray, "num_times"],
    num_kept: int,
) -> Float[Array, "num_kept_plus_one batch *event"]:
    """States at the last ``num_kept + 1`` times of the grid; the memory does not depend on the number of steps.

    Args:
        advance: ``(x, (index, t, h))`` -> x after a step.
        x0: state at the first time.
        grid: increasing times.
        num_kept: steps whose states are kept.
    """
    index = jnp.arange(len(grid) - 1)
    times, lengths = jnp.asarray(grid[:-1]), jnp.asarray(np.diff(grid))
    first = len(index) - num_kept

    def forget(x: Array, step: Any) -> tuple[Array, None]:
        return advance(x, step), None

    def keep(x: Array, step: Any) -> tuple[Array, Array]:
        x = advance(x, step)
        return x, x

    steps = (index, times, lengths)
    before, after = (
        jax.tree.map(lambda leaf, part=part: leaf[part], steps) for part in (slice(first), slice(first, None))
    )
    x, _ = jax.lax.scan(forget, x0, before)
    _, states = jax.lax.scan(keep, x, after)
    return jnp.concatenate([x[None], states])


def checked_grid(num_steps: int | None, times: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """The grid of the paths from 0 to 1.

    Raises:
        ValueError: for both ways to give it at once, or a grid that does not run from 0 to 1.
    """
    count = 50 if num_steps is None and times is None else num_steps
    grid = time_grids.resolve(times, None, None, count, np.float64)
    if grid[0] != 0 or grid[-1] != 1:
        raise ValueError(
            f"times must run from 0 (noise) to 1 (data), got a grid from {grid[0]} to {grid[-1]}"
        )
    return grid


def check_positive(name: str, value: Any, remark: str = "", *, or_zero: bool = False) -> None:
    """Refuses a number that is not positive (or zero) and finite.

    Raises:
        ValueError: naming number and range; the remark says why.
    """
    in_range = value >= 0 if or_zero else value > 0
    if not (in_range and value < math.inf):
        raise ValueError(f"{name} must be {'>= 0' if or_zero else '> 0'} and finite, got {value}{remark}")


def check_matched(num_matched: int | None, num_points: int) -> None:
    """Refuses a number of points that the path does not have.

    Raises:
        ValueError: naming the range.
    """
    if num_matched is not None and not _is_count(num_matched, num_points):
        raise ValueError(
            f"num_matched is the number of points of a path to regress on, an integer from 1 to {num_points} here, got "
            f"{num_matched}"
        )


def checked_truncation(truncation: int | None, num_steps: int) -> int:
    """Number of last steps that are trained; all of them for None.

    Raises:
        ValueError: if the path does not have so many.
    """
    if truncation is None:
        return num_steps
    if not _is_count(truncation, num_steps):
        raise ValueError(
            f"truncation is the number of last steps to train, an integer from 1 to {num_steps} here, got "
            f"{truncation}"
        )
    return int(truncation)


def _is_count(value: Any, largest: int) -> bool:
    return isinstance(value, numbers.Integral) and 1 <= int(value) <= largest


def velocity_of(
    drift: Drift, params: Any, cond: Any, row_by_row: bool = False
) -> Callable[[Array, Array], Array]:
    """A drift with its parameters and conditions as a function of one time for all rows, and of the state.

    With ``row_by_row`` the drift sees single rows under ``jax.vmap``, whose time is not repeated: what depends on time
    and parameters alone, such as an embedding of t, is computed once for all rows.
    """
    if not row_by_row:
        return lambda t, x: evaluate(drift, params, t, x, cond)

    def velocity(t: Array, x: Array) -> Array:
        def of_row(x: Array, cond: Any) -> Array:
            row = jax.tree.map(lambda leaf: leaf[None], (x, cond))
            return evaluate(drift, params, t, *row)[0]

        return jax.vmap(of_row)(x, cond)

    return velocity


def ode_step(
    solver: diffrax.AbstractSolver, velocity: Callable[[Array, Array], Array]
) -> Callable[..., Array]:
    """``advance`` of `last_states` for the ODE of a velocity."""
    step = step_of(solver)

    def advance(x: Array, at: tuple[Array, Array, Array]) -> Array:
        _, t, h = at
        return step(velocity, t, h, x)[0]

    return advance


def random_steps(keys: Key[Array, "rows"], num_steps: int, num_drawn: int) -> Array:
    """For each row, different steps out of ``num_steps``, ``[rows, num_drawn]``, each as likely as the others."""
    return jax.vmap(lambda key: jax.random.permutation(key, num_steps)[:num_drawn])(keys)

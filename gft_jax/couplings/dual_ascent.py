"""Stochastic ascent of the semi-discrete dual, by ott-jax. Imported when first needed, since ott takes seconds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key
from ott.geometry.geometry import Geometry
from ott.geometry.semidiscrete_pointcloud import SemidiscretePointCloud
from ott.problems.linear.semidiscrete_linear_problem import SemidiscreteLinearProblem
from ott.solvers.linear.semidiscrete import SemidiscreteSolver

from gft_jax.couplings.base import squared_distances

START = 1.0
"""Epsilon at the first step, in units of the mean squared distance, unless a larger one is asked for."""
END = 1e-7
"""What it falls towards, unless a larger one is asked for: below the differences between neighbouring points."""
RATE = 0.3
"""Learning rate of Adam in units of the falling epsilon: a step moves the potentials by a part of the differences that
matter at that epsilon."""


@jax.tree_util.register_pytree_node_class
class _Cloud(SemidiscretePointCloud):
    """Source and points with distances at full matrix precision: ott multiplies points at the default (TF32) one."""

    def _from_samples(self, x: Array, epsilon: Any) -> Any:
        return Geometry(squared_distances(x, self.y), epsilon=epsilon)

    @property
    def epsilon(self) -> Array:
        return jnp.asarray(self._epsilon, self.dtype)

    @property
    def is_entropy_regularized(self) -> bool:
        return True  # at END, too; without asking for the value of an epsilon that may be traced


def dual_ascent(
    key: Key[Array, ""],
    points: Float[Array, "num size"],
    draw: Callable[[Key[Array, ""], int], Array],
    centre: Float[Array, "size"],
    *,
    epsilon: Float[Array, ""],
    num_steps: int,
    batch_size: int,
) -> Float[Array, "num"]:
    """Potentials of the points, up to a constant, after so many steps; the mean over the last hundred or so.

    Args:
        key: of the source rows.
        points: data, in units in which the mean squared distance to the source is 1.
        draw: ``(key, rows)`` -> source rows ``[rows, size]`` in the same units.
        centre: mean of the source, likewise.
        epsilon: at which it ends, >= 0.
        num_steps: steps, >= 1.
        batch_size: source rows of a step.
    """
    start = jnp.maximum(START, epsilon)

    def falling(step: Any) -> Array:
        return start * (END / start) ** (step / num_steps)

    solver = SemidiscreteSolver(
        num_iterations=num_steps,
        batch_size=batch_size,
        optimizer=optax.adam(lambda step: RATE * falling(step), b2=0.99),
        # One block of all steps: ott's `converged` is False whenever it stops early (0.6.0), and its estimate of the
        # marginal error is noisier than ours.
        error_eval_every=num_steps,
        error_num_repeats=1,
        epsilon_scheduler=lambda step, target: jnp.maximum(falling(step), target),
    )
    # The potentials in the limit of a large epsilon, from which it falls: all points are equally good for the centre.
    potentials = squared_distances(centre[None], points)[0]
    with jax.numpy_rank_promotion("allow"):
        cloud = _Cloud(
            lambda key, shape, dtype: draw(key, shape[0]), points, epsilon=jnp.maximum(epsilon, END)
        )
        return solver(key, SemidiscreteLinearProblem(cloud), potentials).g

"""Flow matching in plain JAX, written out for one network: what a step would cost without the library.

It does all that the library's step does for the linear path with uniform times: the same draws from the keys of the
rows, Adam, averaged parameters with their warm-up, the norm of the gradient, and a guard that leaves the state alone
where something is not finite. `check_agreement` refuses a comparison where it does not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array

from gft_jax import Batch, TrainState

_ADAM = (0.9, 0.999, 1e-8)  # decays of the two moments, and what is added to the root of the second


class State(NamedTuple):
    """What the step needs of the steps before."""

    step: Array
    """Number of steps taken."""
    params: Any
    """The trained parameters."""
    averaged_params: Any
    """Their moving average."""
    first_moment: Any
    """Adam's average of the gradient."""
    second_moment: Any
    """Adam's average of the squared gradient."""


class Info(NamedTuple):
    """Scalars of a step."""

    loss: Array
    """Mean squared error of the batch."""
    grad_norm: Array
    """Norm of the gradient."""
    is_finite: Array
    """Whether the update was made."""


Step = Callable[[State, Batch], tuple[State, Info]]


def start(params: Any) -> State:
    """The state before the first step, of copies of the parameters."""

    @jax.jit
    def make(params: Any) -> State:
        zeros = jax.tree.map(jnp.zeros_like, params)
        params, averaged = (jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params) for _ in range(2))
        return State(jnp.zeros((), jnp.int32), params, averaged, zeros, jax.tree.map(jnp.copy, zeros))

    return make(params)


def flow_matching_step(module: linen.Module, learning_rate: float, averaging: float) -> Step:
    """The step for rows ``[rows, *event]``, to be jitted or scanned."""
    decay_1, decay_2, epsilon = _ADAM

    def step(state: State, batch: Batch) -> tuple[State, Info]:
        x0, x1 = batch.x0, jnp.asarray(batch.x1)
        keys = jax.vmap(jax.random.split)(batch.key)
        t = jax.vmap(jax.random.uniform)(keys[:, 0])
        t_over_events = t.reshape(t.shape + (1,) * (x0.ndim - 1))
        x = t_over_events * x1 + (1.0 - t_over_events) * x0
        target = x1 - x0

        def loss_of(params: Any) -> Array:
            velocity: Any = module.apply({"params": params}, t, x)
            return jnp.sum(jnp.square(velocity - target)) / t.shape[0]

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))

        count = state.step + 1
        correction_1, correction_2 = 1.0 - decay_1**count, 1.0 - decay_2**count
        keep = jnp.minimum(averaging, (1.0 + state.step) / (10.0 + state.step))

        def moment_1(old: Array, g: Array) -> Array:
            return decay_1 * old + (1.0 - decay_1) * g

        def moment_2(old: Array, g: Array) -> Array:
            return decay_2 * old + (1.0 - decay_2) * g**2

        def update(p: Array, m: Array, s: Array) -> Array:
            return p - learning_rate * (m / correction_1) / (jnp.sqrt(s / correction_2) + epsilon)

        def average(old: Array, p: Array) -> Array:
            return keep * old + (1.0 - keep) * p

        first = jax.tree.map(moment_1, state.first_moment, gradient)
        second = jax.tree.map(moment_2, state.second_moment, gradient)
        params = jax.tree.map(update, state.params, first, second)
        averaged = jax.tree.map(average, state.averaged_params, params)
        finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.all(finite)

        new = State(count, params, averaged, first, second)
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
        return kept._replace(step=count), Info(loss, grad_norm, is_finite)

    return step


def check_agreement(ours: State, library: TrainState, learning_rate: float, num_steps: int) -> None:
    """Refuses a comparison of two programs that do not compute the same.

    Adam turns rounding of a gradient near zero into a part of a step, so that the yardstick is the distance that
    the parameters can have gone, ``num_steps * learning_rate``.

    Args:
        ours: state of the hand-written program.
        library: state of the library after the same batches.
        learning_rate: of both.
        num_steps: taken by both.

    Raises:
        ValueError: if parameters or their averages differ by more than a thousandth of that distance.
    """
    allowed = 1e-3 * num_steps * learning_rate
    for name in ("params", "averaged_params"):
        pairs = zip(
            jax.tree.leaves(getattr(ours, name)), jax.tree.leaves(getattr(library, name)), strict=True
        )
        difference = max(float(np.max(np.abs(np.asarray(one) - np.asarray(other)))) for one, other in pairs)
        if not difference <= allowed:
            raise ValueError(
                f"the hand-written step and the library's do not compute the same: after {num_steps} steps their "
                f"{name} differ by {difference:.2g}, and {allowed:.2g} is allowed. Ratios of their times would mean "
                "nothing; bring experiments/benchmarks/handwritten.py in line with the library."
            )

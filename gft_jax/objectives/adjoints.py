"""Adjoint states along a path: how the end's reward, and the cost on the way, change with the state before.

``a(1) = grad r(x_1)``, and backwards in time

* lean:  ``da/dt = -[dv_base/dx]^T a``;
* full:  ``da/dt = -[dv/dx]^T a + lam [du/dx]^T grad c(u)``, ``u = v - v_base``, v the current drift.

Where ``u = 0`` they are the same, and a control that is optimal for one is for the other. Away from there only the full
one is the gradient of the cost to go; the lean one needs one vector-Jacobian product a step where the full one needs
two, and does not follow the errors of a control that is still being learned.

Source: Domingo-Enrich et al., "Adjoint matching", arXiv:2409.08861, for the lean adjoint; the deterministic form is
derived.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from gft_jax.control_costs import ControlCost
from gft_jax.objectives.rollouts import Step, euler

Velocity = Callable[[Array, Array], Array]


class LastSteps(NamedTuple):
    """The last steps of a path, and the fields along it."""

    states: Float[Array, "num_states batch *event"]
    """States at the ends of the steps, the first included."""
    times: Float[Array, "steps"]
    """Flow times at which the steps begin."""
    lengths: Float[Array, "steps"]
    """Lengths of the steps."""
    base: Velocity
    """The base's velocity ``(t, x)``."""
    student: Velocity
    """The current velocity ``(t, x)``."""


class Along(NamedTuple):
    """What the backward pass finds at the steps of a path."""

    at_start: Float[Array, "steps batch *event"]
    """Adjoint a_k at the beginning of each step."""
    at_end: Float[Array, "steps batch *event"]
    """Adjoint a_{k+1} at its end."""
    base_velocity: Float[Array, "steps batch *event"]
    """``v_base(t_k, x_k)``: the primal of the vector-Jacobian products, so that it need not be evaluated again."""


Adjoint = Callable[[LastSteps, Array, Step, ControlCost, Any, int], Along]
"""``(path, adjoint at the end, step of the solver, cost, lam, unroll)`` -> what is found at the steps."""


def lean_adjoint(
    path: LastSteps, end: Array, step: Step, cost: ControlCost, cost_weight: Any, unroll: int
) -> Along:
    """The lean adjoint: ``a_k = [dF_k/dx]^T a_{k+1}``, F_k the base's step of the solver from x_k.

    For Euler's method ``a_k = a_{k+1} + h [dv_base/dx]^T a_{k+1}``. Cost and cost_weight have no part in it.
    """

    def back(adjoint: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Along]:
        t, h, x = at
        _, pull, velocity = jax.vjp(lambda x: step(path.base, t, h, x), x, has_aux=True)
        before = pull(adjoint)[0]
        return before, Along(before, adjoint, velocity)

    return _backwards(back, path, end, unroll)


def full_adjoint(
    path: LastSteps, end: Array, step: Step, cost: ControlCost, cost_weight: Any, unroll: int
) -> Along:
    """The full adjoint of Euler's method: ``a_k = a_{k+1} + h [dv/dx]^T a_{k+1} - h lam [du/dx]^T grad c(u)``.

    It is the exact gradient of the discrete cost to go under the current drift.

    Raises:
        ValueError: for another solver.
    """
    check_solver(full_adjoint, step)

    def back(adjoint: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Along]:
        t, h, x = at
        (student, base), pull = jax.vjp(lambda x: (path.student(t, x), path.base(t, x)), x)
        price = cost_weight * cost.slope(student - base)
        before = adjoint + h * pull((adjoint - price, price))[0]
        return before, Along(before, adjoint, base)

    return _backwards(back, path, end, unroll)


def check_solver(adjoint: Adjoint, step: Step) -> None:
    """Refuses the full adjoint of another method than Euler's.

    Raises:
        ValueError: naming what goes together.
    """
    if adjoint is full_adjoint and step is not euler:
        raise ValueError(
            "the full adjoint is that of Euler's method: give solver=diffrax.Euler(), or lean_adjoint"
        )


def _backwards(back: Callable[..., tuple[Array, Along]], path: LastSteps, end: Array, unroll: int) -> Along:
    steps = (path.times, path.lengths, path.states[:-1])
    return jax.lax.scan(back, end, steps, reverse=True, unroll=min(unroll, len(path.times)))[1]

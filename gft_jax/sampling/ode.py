"""Sampling by the ordinary differential equation of a drift, from noise to data or back, by Diffrax."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gft_jax.drifts import evaluate
from gft_jax.types import Drift


class OdeSample(NamedTuple):
    """End points of an ODE, and what the way there cost."""

    x: Float[Array, "batch *event"]
    """State at t1; meaningless where ``succeeded`` is False."""
    trajectory: Float[Array, "num_saved batch *event"] | None
    """States along the way, if asked for."""
    times: Float[Array, "num_saved"] | None
    """Flow times of the trajectory."""
    num_evaluations: Int[Array, ""]
    """Number of evaluations of the drift on the whole batch (NFE), rejected steps included."""
    succeeded: Bool[Array, ""]
    """Whether the solver reached t1 and x is finite."""
    result: diffrax.RESULTS
    """Diffrax's own verdict, e.g. ``diffrax.RESULTS.max_steps_reached``."""


class _UniformSteps(diffrax.AbstractStepSizeController):
    """Exactly num_steps equal steps, whatever rounding does to ``(t1 - t0) / num_steps``."""

    num_steps: int

    def _time(self, step, t0, t1):
        return jnp.where(
            step == self.num_steps, t1, t0 + (t1 - t0) * (step / self.num_steps).astype(t0.dtype)
        )

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        step = jnp.asarray(1)
        return self._time(step, t0, t1), (step, t0, t1)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        step, start, end = controller_state
        state = (step + 1, start, end)
        return True, t1, self._time(step + 1, start, end), False, state, diffrax.RESULTS.successful


class _CountFreshSteps(diffrax.AbstractStepSizeController):
    """Counts, beside the decisions of a controller, the steps that must evaluate their first stage.

    A first-same-as-last solver takes its first stage from the step before, except at the start (until a step
    has been accepted) and after a jump. Diffrax reports the number of steps, but not of these.
    """

    controller: diffrax.AbstractStepSizeController
    initial_steps: int | None
    """The first step tried is the interval divided by this, so that no evaluation is spent on choosing it."""

    def wrap(self, direction):
        return _CountFreshSteps(self.controller.wrap(direction), self.initial_steps)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first_step = None if self.initial_steps is None else (t1 - t0) / self.initial_steps
        end, inner = self.controller.init(terms, t0, t1, y0, first_step, args, func, error_order)
        return end, (inner, jnp.asarray(True), jnp.asarray(0))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        inner, fresh, num_fresh = controller_state
        keep, start, end, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        state = (inner, jnp.where(keep, jump, fresh), num_fresh + fresh)
        return keep, start, end, jump, state, result


def _evaluations_per_step(solver: diffrax.AbstractSolver) -> tuple[int, int]:
    """Evaluations in each step, and further ones in a fresh step (see `_CountFreshSteps`)."""
    if isinstance(solver, diffrax.HalfSolver):
        # A whole step and a first half from the same state, then a second half that goes on from the first.
        each, fresh = _evaluations_per_step(solver.solver)
        return 3 * each, 2 * fresh
    if isinstance(solver, diffrax.Euler):
        return 1, 0
    if isinstance(solver, diffrax.AbstractERK) and isinstance(solver.tableau, diffrax.ButcherTableau):
        return solver.tableau.num_stages - solver.tableau.fsal, int(solver.tableau.fsal)
    raise ValueError(
        f"solver must be diffrax.Euler, an explicit Runge-Kutta method of Diffrax (Heun, Midpoint, Tsit5, ...) or "
        f"a HalfSolver of one of them, got {type(solver).__name__}: the evaluations of others cannot be counted."
    )


def _as_data(leaf: Any) -> Any:
    """Python numbers would be static in Diffrax's own jit, and another value would compile again."""
    return jnp.asarray(leaf) if isinstance(leaf, bool | int | float) else leaf


def _velocity(drift: Drift, t: Array, x: Array, args: Any) -> Array:
    params, cond = args
    return evaluate(drift, params, t, x, cond).astype(x.dtype)


def _saved_times(save_at: Sequence[float] | np.ndarray | Array, t0: float, t1: float) -> np.ndarray:
    """The times at which a trajectory is wanted, checked."""
    times = np.asarray(save_at, np.float64)
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"save_at must be a non-empty sequence of times, got shape {times.shape}.")
    if times.min() < min(t0, t1) or times.max() > max(t0, t1):
        raise ValueError(
            f"save_at must lie between t0={t0} and t1={t1}, got times from {times.min()} to {times.max()}."
        )
    if np.any(np.diff(times) * (t1 - t0) < 0):
        raise ValueError(f"save_at must run from t0={t0} towards t1={t1}, got {times.tolist()}.")
    return times


def sample_ode(
    drift: Drift,
    params: Any,
    x0: Float[Array | np.ndarray, "batch *event"],
    *,
    cond: Any = None,
    t0: float = 0.0,
    t1: float = 1.0,
    num_steps: int = 100,
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    save_at: Sequence[float] | np.ndarray | Array | None = None,
    save_steps: bool = False,
    max_steps: int = 4096,
) -> OdeSample:
    """Solution at t1 of ``dx/dt = v(t, x)`` with ``x(t0) = x0``: samples from noise, or codes of data backwards.

    Without a controller the solver takes num_steps equal steps. With one, such as
    ``diffrax.PIDController(rtol=1e-4, atol=1e-4)``, the steps adapt to the *whole batch*: one step size, from
    the root mean square of the scaled error over all its entries, so a row depends a little on its batch
    mates. For steps of its own for each row, vmap this function over rows of batch size one; all rows then
    take as long as the slowest, and the counts are per row. ``diffrax.StepTo(ts)`` gives any fixed time grid.

    A failed solve never raises: read ``succeeded``; x is meaningless where it is False. The result is
    differentiable in params, x0 and cond in reverse mode, with recursive checkpoints; evaluations in the backward
    pass are not counted.

    Under jit, everything but params, x0 and cond is static. Without jit, repeated calls compile again unless
    ``drift`` is the same object.

    Args:
        drift: the velocity field.
        params: its parameters.
        x0: states at t0, ``[batch, *event]``, not empty. The state keeps this dtype, but half precision is
            integrated (and returned) in float32.
        cond: condition of the rows, a pytree of ``[batch, ...]``, or None.
        t0: flow time at the start, in [0, 1]. With t0=1 and t1=0, data are encoded into noise.
        t1: flow time at the end, in [0, 1], different from t0.
        num_steps: number >= 1 of equal steps. With a controller it sets only the first step that is tried,
            ``(t1 - t0) / num_steps``.
        solver: ``diffrax.Euler()``, an explicit Runge-Kutta method of Diffrax, or a HalfSolver of one.
        stepsize_controller: None for equal steps.
        save_at: times of the trajectory between t0 and t1, in the order of integration, known at trace time.
            Between steps the solver interpolates: linearly for Euler, Midpoint, Heun and Ralston, to fourth
            order for Tsit5 and Dopri5.
        save_steps: whether the trajectory is x0 and the state after every step: ``num_steps + 1`` states, one
            for each time of a StepTo, or ``max_steps + 1`` with another controller, the unused ones at the end
            repeating x and t1 (so set max_steps with memory in mind).
        max_steps: largest number of steps, rejected ones included, with a controller.

    Raises:
        ValueError: if x0 is empty; t0 and t1 are equal or outside [0, 1]; num_steps or max_steps is not
            positive; the solver cannot be counted, or gives no error estimate where an adaptive controller needs
            one; save_at is out of range or order, or given together with save_steps; or the drift does not
            return the shape of x0.

    Source: P. Kidger, "On neural differential equations", arXiv:2202.02435 (Diffrax).
    """
    if np.size(x0) == 0:
        raise ValueError(f"x0 must be [batch, *event] and not empty, got shape {np.shape(x0)}.")
    if not (0 <= t0 <= 1 and 0 <= t1 <= 1) or t0 == t1:
        raise ValueError(f"t0 and t1 must be different times in [0, 1], got t0={t0} and t1={t1}.")
    if num_steps < 1 or max_steps < 1:
        raise ValueError(f"num_steps and max_steps must be >= 1, got {num_steps} and {max_steps}.")
    if save_at is not None and save_steps:
        raise ValueError("save_at and save_steps are two ways to choose a trajectory; give one of them.")
    adaptive = isinstance(stepsize_controller, diffrax.AbstractAdaptiveStepSizeController)
    if adaptive and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        name = type(solver).__name__
        raise ValueError(
            f"An adaptive controller needs an error estimate, which {name} does not give; use diffrax.Tsit5() or "
            f"diffrax.HalfSolver(diffrax.{name}())."
        )
    each, if_fresh = _evaluations_per_step(solver)

    x0 = jnp.asarray(x0, jnp.promote_types(jnp.result_type(x0), jnp.float32))
    initial_steps = num_steps
    if stepsize_controller is None or isinstance(stepsize_controller, diffrax.ConstantStepSize):
        controller, max_steps = _UniformSteps(num_steps), num_steps
    else:
        # Times in another precision than the state would change its dtype.
        controller = jax.tree.map(
            lambda leaf: leaf.astype(x0.dtype) if eqx.is_inexact_array(leaf) else leaf, stepsize_controller
        )
        if isinstance(controller, diffrax.StepTo):
            initial_steps, max_steps = None, len(controller.ts) - 1

    saved = [diffrax.SubSaveAt(t1=True)]
    if save_steps:
        saved.append(diffrax.SubSaveAt(t0=True, steps=1))
    elif save_at is not None:
        saved.append(diffrax.SubSaveAt(ts=jnp.asarray(_saved_times(save_at, t0, t1), x0.dtype)))

    solution = diffrax.diffeqsolve(
        # A Partial, unlike a closure, is equal to the one of the last call: no new compilation.
        diffrax.ODETerm(jax.tree_util.Partial(_velocity, drift)),
        solver,
        jnp.asarray(t0, x0.dtype),
        jnp.asarray(t1, x0.dtype),
        None,
        x0,
        args=jax.tree.map(_as_data, (params, cond)),
        saveat=diffrax.SaveAt(subs=saved, controller_state=True),
        stepsize_controller=_CountFreshSteps(controller, initial_steps),
        max_steps=max_steps,
        throw=False,
    )
    states: Any = solution.ys
    state_times: Any = solution.ts
    controller_state: Any = solution.controller_state
    x, trajectory, times = states[0][0], None, None
    if len(saved) > 1:
        # Diffrax leaves the places of steps that were not needed at infinity.
        unused = jnp.isinf(state_times[1])
        trajectory = jnp.where(unused.reshape(unused.shape + (1,) * x.ndim), x, states[1])
        times = jnp.where(unused, t1, state_times[1])
    _, _, num_fresh = controller_state
    num_evaluations = each * solution.stats["num_steps"] + if_fresh * num_fresh
    return OdeSample(
        x=x,
        trajectory=trajectory,
        times=times,
        num_evaluations=jnp.asarray(num_evaluations, jnp.int32),
        succeeded=(solution.result == diffrax.RESULTS.successful) & jnp.isfinite(x).all(),
        result=solution.result,
    )

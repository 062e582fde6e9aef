"""How a solver of Diffrax steps: along a given grid, and how many evaluations its steps cost."""

import diffrax
import jax.numpy as jnp
from jaxtyping import Array


class GridSteps(diffrax.AbstractStepSizeController):
    """The steps of a grid ``[num_steps + 1]`` that was checked before, in the dtype of the state.

    Like ``diffrax.StepTo``, whose checks run on the device and abort the program.
    """

    times: Array

    def wrap(self, direction):
        """The grid in the solver's own time, which always grows."""
        return GridSteps(self.times * direction)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """End of the first step, and the index of the second."""
        return self.times[1], jnp.asarray(2)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        """The next step of the grid; its end lies beyond the grid after the last, and is not used."""
        end = self.times[jnp.minimum(controller_state, len(self.times) - 1)]
        return True, t1, end, False, controller_state + 1, diffrax.RESULTS.successful


class CountFreshSteps(diffrax.AbstractStepSizeController):
    """Counts, beside the decisions of a controller, the steps that must evaluate their first stage.

    A first-same-as-last solver takes its first stage from the step before, except at the start (until a step
    has been accepted) and after a jump. Diffrax reports the number of steps, but not of these.
    """

    controller: diffrax.AbstractStepSizeController
    initial_steps: int
    """The first step tried is the interval divided by this, so that no evaluation is spent on choosing it."""

    def wrap(self, direction):
        """The controller in the solver's own time."""
        return CountFreshSteps(self.controller.wrap(direction), self.initial_steps)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The controller's first step; it is a fresh one."""
        first_step = (t1 - t0) / self.initial_steps
        end, inner = self.controller.init(terms, t0, t1, y0, first_step, args, func, error_order)
        return end, (inner, jnp.asarray(True), jnp.asarray(0))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        """The controller's decision, and one fresh step more if this was one."""
        inner, fresh, num_fresh = controller_state
        keep, start, end, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        state = (inner, jnp.where(keep, jump, fresh), num_fresh + fresh)
        return keep, start, end, jump, state, result


def evaluations_per_step(solver: diffrax.AbstractSolver) -> tuple[int, int]:
    """Evaluations in each step, and further ones in a fresh step (see `CountFreshSteps`).

    Raises:
        ValueError: for a solver whose evaluations cannot be counted.
    """
    if isinstance(solver, diffrax.HalfSolver):
        # A whole step and a first half from the same state, then a second half that goes on from the first.
        each, fresh = evaluations_per_step(solver.solver)
        return 3 * each, 2 * fresh
    if isinstance(solver, diffrax.Euler):
        return 1, 0
    if isinstance(solver, diffrax.AbstractERK) and isinstance(solver.tableau, diffrax.ButcherTableau):
        return solver.tableau.num_stages - solver.tableau.fsal, int(solver.tableau.fsal)
    raise ValueError(
        f"solver must be diffrax.Euler, an explicit Runge-Kutta method of Diffrax (Heun, Midpoint, Tsit5, ...) or "
        f"a HalfSolver of one of them, got {type(solver).__name__}: the evaluations of others cannot be counted."
    )

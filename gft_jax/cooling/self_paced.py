"""Self-paced cooling: the temperature falls as the student follows."""

import numbers
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from gft_jax.cooling.temperature import (
    Cooling,
    MeanDisplacement,
    Scalar,
    Step,
    check_num_steps,
    displacement_average,
    effective_target_weight,
    is_finite,
    temperature,
)


class SelfPacedState(NamedTuple):
    """State of `self_paced`."""

    raises: Int[Array, ""]
    """How many times the target weight was raised: it is ``start + (1 - start) raises / fastest``. An integer,
    since adding up small floats would drift, and stall where the increment is below the rounding."""
    progress: MeanDisplacement
    """Smoothed ``|r|^2`` and ``w <r, d>``, with the target weight ``w`` inside the average."""


def self_paced(
    num_steps: int,
    *,
    start: float = 0.05,
    fastest: int | None = None,
    tolerance: float = 0.1,
    decay: float = 0.95,
) -> Cooling:
    """Cooling that raises the target weight while the student keeps up, and waits while it lags.

    The target weight ``w`` starts at ``start`` and is raised by ``(1 - start) / fastest`` after each step at which

        ``mean |r|^2 >= (1 - tolerance) mean(w <r, d>)``  and  ``mean(w <r, d>) > 0``,

    with ``r = v_theta - v_pre``, ``d = u - v_pre`` and exponential means over the batches so far; otherwise (also
    at a step where either is not finite) it is held. This is ``w_hat >= (1 - tolerance) w`` for the measured weight of
    `effective_target_weight`, with ``w`` inside the average, since on a ramp a smoothed ratio would lag by itself.
    The test is one-sided: optimiser noise inflates ``|r|^2`` at small ``w``, so ``w_hat > w`` is no reason to wait.

    The budget wins over waiting: ``w`` never falls below the line that reaches 1 at ``num_steps`` at the fastest rate.
    So the temperature is exactly zero from ``num_steps`` on. It never rises.

    Reads ``stats["displacement_squared"]`` and ``stats["displacement_along_target"]``.

    Args:
        num_steps: steps within which temperature zero is reached; >= 1.
        start: target weight at the first step, in (0, 1].
        fastest: steps from ``start`` to 1 for a student that never lags, from 1 to ``num_steps``. By default half
            of ``num_steps``: the stability of gradual fine-tuning comes from cooling slowly, which a pace bounded
            by the student alone gives away; the other half is for waiting, or for training at temperature zero.
        tolerance: relative lag that counts as keeping up, in [0, 1).
        decay: of the exponential means, in [0, 1).

    Raises:
        ValueError: a value out of range; at trace time, an objective that does not report the two diagnostics.
    """
    check_num_steps(num_steps)
    fastest = max(1, num_steps // 2) if fastest is None else fastest
    if not 0 < start <= 1:
        raise ValueError(f"start must be a target weight in (0, 1], got {start}")
    if not isinstance(fastest, numbers.Integral) or not 1 <= fastest <= num_steps:
        raise ValueError(f"fastest must be an integer from 1 to num_steps = {num_steps}, got {fastest!r}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")
    average = displacement_average(decay)

    def raises_at(state: SelfPacedState, step: Step) -> Int[Array, ""]:
        owed = jnp.asarray(fastest - (num_steps - step), jnp.int32)
        return jnp.clip(owed, state.raises, fastest)

    def weight_after(raises: Int[Array, ""]) -> Scalar:
        raised = jnp.asarray(raises, jnp.result_type(float)) / fastest
        return jnp.where(raises >= fastest, 1.0, start + (1.0 - start) * raised)

    def init() -> SelfPacedState:
        return SelfPacedState(jnp.zeros((), jnp.int32), average.init())

    def temperature_at(state: SelfPacedState, step: Step) -> Scalar:
        return jnp.maximum(temperature(weight_after(raises_at(state, step))), 0.0)

    def update(state: SelfPacedState, step: Step, stats: dict[str, Array]) -> SelfPacedState:
        missing = [name for name in MeanDisplacement._fields if name not in stats]
        if missing:
            raise ValueError(
                f"self-paced cooling needs the diagnostics {missing}, but the objective reports {sorted(stats)}; "
                "gft_jax.objectives.gradual reports them; cool other objectives by a schedule"
            )
        raises = raises_at(state, step)
        new = MeanDisplacement(
            stats["displacement_squared"], weight_after(raises) * stats["displacement_along_target"]
        )
        progress = average.update(state.progress, *new)
        keeps_up = is_finite(new) & (effective_target_weight(*progress) >= 1.0 - tolerance)
        return SelfPacedState(jnp.minimum(raises + keeps_up, fastest), progress)

    return Cooling(init, temperature_at, update)

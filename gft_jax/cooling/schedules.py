"""Cooling schedules: the temperature, or the target weight, as a function of the training step."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gft_jax.cooling.temperature import Cooling, Scalar, Step, check_num_steps, temperature
from gft_jax.types import Schedule

Ends = tuple[float, float] | None
"""``(start, end)``; None for the keyword that is not used."""

_MAX_CHECKED = 2**20
"""Schedules are checked at every step up to this many steps, and evenly spread beyond."""


class _Space(NamedTuple):
    """What a curve can be drawn in."""

    name: str
    valid_range: str
    contains: Callable[[Any, float], Any]
    """``(value, slack)`` -> whether the value is valid; the slack is for rounding at the coldest value."""
    rises_when_heating: bool
    coldest: float
    to_temperature: Callable[[Array], Array]


_TEMPERATURE = _Space(
    name="temperature",
    valid_range="finite and >= 0",
    contains=lambda value, slack: (value >= -slack) & (value < np.inf),
    rises_when_heating=True,
    coldest=0.0,
    to_temperature=lambda value: value,
)
_TARGET_WEIGHT = _Space(
    name="target_weight",
    valid_range="in (0, 1]",
    contains=lambda value, slack: (value > 0) & (value <= 1 + slack),
    rises_when_heating=False,
    coldest=1.0,
    to_temperature=temperature,
)


def _the_one_given(temperature: Any, target_weight: Any) -> tuple[_Space, Any]:
    if (temperature is None) == (target_weight is None):
        count = "neither" if temperature is None else "both"
        raise ValueError(
            f"give exactly one of temperature= and target_weight=, got {count}: it names what the curve is drawn in"
        )
    return (_TARGET_WEIGHT, target_weight) if temperature is None else (_TEMPERATURE, temperature)


def _checked(space: _Space, values: Any, count: int | None = None) -> tuple[float, ...]:
    """The values as floats: as many as asked for, all of them valid in their space."""
    try:
        floats = tuple(float(value) for value in values)
    except TypeError:
        floats = ()
    if not floats or (count is not None and len(floats) != count):
        form = {1: "a number", 2: "the pair (start, end)"}.get(count or 0, "a sequence of numbers")
        raise ValueError(f"{space.name} must be {form}, got {values!r}")
    for value in floats:
        if not space.contains(value, 0.0):
            raise ValueError(f"{space.name} must be {space.valid_range}, got {value}")
    return floats


def _no_state() -> tuple[()]:
    return ()


def _same_state(state: Any, step: Step, stats: dict[str, Array]) -> Any:
    return state


def _check_curve(space: _Space, curve: Schedule, num_steps: int, allow_heating: bool) -> float:
    """Value at ``num_steps`` of a curve that is valid and never heats."""
    steps = np.round(np.linspace(0, num_steps, min(num_steps, _MAX_CHECKED) + 1)).astype(np.int32)
    with jax.ensure_compile_time_eval():
        values = np.asarray(jax.vmap(curve)(jnp.asarray(steps)), np.float64)
    rounding = 1e-6  # curves are evaluated in single precision
    invalid = ~space.contains(values, rounding)
    if invalid.any():
        i = np.argmax(invalid)
        raise ValueError(
            f"{space.name} must be {space.valid_range}, but the schedule gives {values[i]:g} at step {steps[i]}"
        )
    change = np.diff(values) * (1.0 if space.rises_when_heating else -1.0)
    heats = change > rounding * (1.0 + np.abs(values[:-1]))
    if heats.any() and not allow_heating:
        i = np.argmax(heats)
        moves = "rises" if space.rises_when_heating else "falls, so the temperature rises,"
        raise ValueError(
            f"the schedule heats: its {space.name} {moves} from {values[i]:g} at step {steps[i]} to "
            f"{values[i + 1]:g} at step {steps[i + 1]}; cool only, or pass allow_heating=True"
        )
    return float(values[-1])


def _follow(
    space: _Space, curve: Schedule, num_steps: int, *, end: float | None = None, allow_heating: bool
) -> Cooling:
    """Cooling along a curve up to ``num_steps``, held at ``end`` (by default the curve's last value) from there."""
    last = _check_curve(space, curve, num_steps, allow_heating)
    held = last if end is None else end

    def temperature_at(state: Any, step: Step) -> Scalar:
        # Selected, not computed: under jit a curve such as `1 - step / num_steps` can end at -5e-8.
        value = jnp.where(step >= num_steps, held, curve(jnp.minimum(step, num_steps)))
        beta = space.to_temperature(value.astype(jnp.result_type(float)))
        return jnp.maximum(beta, 0.0)

    return Cooling(_no_state, temperature_at, _same_state)


def constant(*, temperature: float | None = None, target_weight: float | None = None) -> Cooling:
    """One temperature at every step.

    Args:
        temperature: finite, >= 0; or
        target_weight: in (0, 1].

    Raises:
        ValueError: a value out of range; both or neither keyword.
    """
    space, value = _the_one_given(temperature, target_weight)
    (value,) = _checked(space, (value,), 1)

    def temperature_at(state: Any, step: Step) -> Scalar:
        return space.to_temperature(jnp.asarray(value, jnp.result_type(float)))

    return Cooling(_no_state, temperature_at, _same_state)


def polynomial(
    num_steps: int,
    *,
    temperature: Ends = None,
    target_weight: Ends = None,
    power: float,
    allow_heating: bool = False,
) -> Cooling:
    """From start to end as ``end + (start - end) (1 - step / num_steps)^power``.

    Args:
        num_steps: steps until the end value, which then holds exactly; >= 1.
        temperature: ``(start, end)``, finite and >= 0; or
        target_weight: ``(start, end)``, in (0, 1].
        power: > 0. Above 1 the curve moves fast at first and slowly at the end, below 1 the other way round.
        allow_heating: accept a temperature that rises.

    Raises:
        ValueError: a value out of range; both or neither of the two keywords; a temperature that rises.
    """
    if not 0 < power < np.inf:
        raise ValueError(f"power must be finite and > 0, got {power}")
    return _between(num_steps, temperature, target_weight, lambda left: left**power, allow_heating)


def linear(
    num_steps: int, *, temperature: Ends = None, target_weight: Ends = None, allow_heating: bool = False
) -> Cooling:
    """From start to end at a constant rate: `polynomial` of power 1, with its arguments."""
    return _between(num_steps, temperature, target_weight, lambda left: left, allow_heating)


def cosine(
    num_steps: int, *, temperature: Ends = None, target_weight: Ends = None, allow_heating: bool = False
) -> Cooling:
    """From start to end along half a cosine: ``end + (start - end) (1 + cos(pi step / num_steps)) / 2``.

    The arguments are those of `polynomial`.
    """

    def shape(left: Scalar) -> Scalar:
        # (1 + cos(pi s)) / 2 = sin^2(pi (1 - s) / 2), which does not cancel near the end
        return jnp.sin(0.5 * np.pi * left) ** 2

    return _between(num_steps, temperature, target_weight, shape, allow_heating)


def _between(
    num_steps: int,
    temperature: Ends,
    target_weight: Ends,
    shape: Callable[[Scalar], Scalar],
    allow_heating: bool,
) -> Cooling:
    """Cooling ``end + (start - end) shape(left)``, where ``left`` falls from 1 to 0 over the steps."""
    space, values = _the_one_given(temperature, target_weight)
    start, end = _checked(space, values, 2)
    check_num_steps(num_steps)

    def curve(step: Step) -> Scalar:
        # The remaining steps are counted in integers: `1 - step / num_steps` has lost them near the end.
        left = shape(jnp.asarray(num_steps - step, jnp.result_type(float)) / num_steps)
        # Measured from the smaller end, where a rounding error would matter most.
        return end + (start - end) * left if start >= end else start + (end - start) * (1.0 - left)

    return _follow(space, curve, num_steps, end=end, allow_heating=allow_heating)


def geometric(
    num_steps: int,
    *,
    temperature: Ends = None,
    target_weight: Ends = None,
    then_zero: bool = False,
    allow_heating: bool = False,
) -> Cooling:
    """From start to end by a constant factor per step: ``start (end / start)^(step / num_steps)``.

    A geometric temperature never reaches zero, so both ends must be > 0.

    Args:
        num_steps: steps until the end value, which then holds exactly; >= 1.
        temperature: ``(start, end)``, finite and > 0; or
        target_weight: ``(start, end)``, in (0, 1].
        then_zero: from ``num_steps`` on, drop to temperature exactly zero instead of holding the end value.
        allow_heating: accept a temperature that rises.

    Raises:
        ValueError: as `polynomial`; a temperature of zero at an end.
    """
    space, values = _the_one_given(temperature, target_weight)
    start, end = _checked(space, values, 2)
    check_num_steps(num_steps)
    if min(start, end) == 0.0:
        raise ValueError(
            f"a geometric temperature must be > 0 at both ends, got {(start, end)}; "
            "end at a small one and pass then_zero=True to drop to zero after it"
        )

    def curve(step: Step) -> Scalar:
        return start * (end / start) ** (jnp.asarray(step, jnp.result_type(float)) / num_steps)

    held = space.coldest if then_zero else end
    return _follow(space, curve, num_steps, end=held, allow_heating=allow_heating)


def piecewise(
    boundaries: tuple[int, ...],
    *,
    temperature: tuple[float, ...] | None = None,
    target_weight: tuple[float, ...] | None = None,
    allow_heating: bool = False,
) -> Cooling:
    """Constant between boundaries: value ``i`` from step ``boundaries[i - 1]`` up to ``boundaries[i] - 1``.

    Args:
        boundaries: the steps at which the next value begins; integers >= 1, increasing.
        temperature: one value more than there are boundaries, finite and >= 0; or
        target_weight: likewise, in (0, 1].
        allow_heating: accept a temperature that rises.

    Raises:
        ValueError: a value out of range; both or neither of the two keywords; boundaries that are not increasing
            or do not match the values; a temperature that rises.
    """
    space, values = _the_one_given(temperature, target_weight)
    values = _checked(space, values)
    boundaries = tuple(boundaries)
    if not boundaries or len(values) != len(boundaries) + 1:
        raise ValueError(
            f"there must be one or more boundaries and one value more, got {len(values)} values and "
            f"{len(boundaries)} boundaries"
        )
    if any(later <= earlier for earlier, later in itertools.pairwise((0, *boundaries))):
        raise ValueError(f"boundaries must be increasing steps >= 1, got {boundaries}")
    check_num_steps(boundaries[-1])
    curve = optax.join_schedules([optax.constant_schedule(value) for value in values], list(boundaries))
    return _follow(space, curve, boundaries[-1], end=values[-1], allow_heating=allow_heating)


def from_schedule(
    num_steps: int,
    *,
    temperature: Schedule | None = None,
    target_weight: Schedule | None = None,
    allow_heating: bool = False,
) -> Cooling:
    """Cooling along any optax schedule, held from ``num_steps`` on at the schedule's value there.

    The schedule is checked at construction, at every step up to 2^20 steps and evenly spread beyond.

    Args:
        num_steps: steps until the value is held; >= 1.
        temperature: schedule ``step -> temperature``, finite and >= 0; or
        target_weight: schedule ``step -> target weight``, in (0, 1].
        allow_heating: accept a temperature that rises.

    Raises:
        ValueError: a value out of range; both or neither of the two keywords; a temperature that rises.
    """
    space, schedule = _the_one_given(temperature, target_weight)
    if not callable(schedule):
        raise ValueError(f"{space.name} must be a schedule, a function of the step, got {schedule!r}")
    check_num_steps(num_steps)
    return _follow(space, lambda step: jnp.asarray(schedule(step)), num_steps, allow_heating=allow_heating)

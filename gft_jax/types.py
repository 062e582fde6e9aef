"""The vocabulary of the library: what a drift, a batch, an objective and an adapter are.

Conventions that hold everywhere:

* Flow time ``t`` lies in [0, 1]: ``t = 0`` is the source (noise), ``t = 1`` is data.
* Arrays of samples are ``[batch, *event]``; an event may have any rank, also rank zero.
* Squared norms are sums over the event axes; losses are means over the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, PyTree

Params = PyTree
"""Parameters of a drift: any pytree of arrays. They travel as arguments, never inside a closure."""

Schedule = Callable[[Any], Any]
"""A function of the training step (an optax schedule): integer step -> scalar."""

Weighting = Callable[[Array], Array]
"""A weight by flow time, ``k(t)``: t ``[batch]`` -> positive weights ``[batch]``."""

TimeSampler = Callable[[Array], Array]
"""Draws one flow time: a typed key -> scalar in [0, 1]."""


@runtime_checkable
class Drift(Protocol):
    """A velocity field: ``drift(params, t, x, cond=None)`` -> array like ``x``.

    ``t`` has shape ``[batch]``, ``x`` has shape ``[batch, *event]``; ``cond`` is any pytree of arrays
    ``[batch, ...]`` or None. The function is pure, and row i of the result depends on row i alone.
    """

    def __call__(self, params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        """Velocity at ``(t, x)``."""
        ...


@runtime_checkable
class TwoTimeDrift(Protocol):
    """An average velocity: ``drift(params, t, s, x, cond=None)`` -> array like ``x``, for ``t <= s``.

    The mean over [t, s] of the velocity along the flow that passes x at time t, so that ``x + (s - t) drift(...)`` is
    where it is at s; at s = t the velocity itself. ``t`` and ``s`` have shape ``[batch]``; all else is as of a `Drift`.
    """

    def __call__(self, params: Any, t: Array, s: Array, x: Array, cond: Any = None, /) -> Array:
        """Average velocity from ``(t, x)`` to the time s."""
        ...


@runtime_checkable
class Reward(Protocol):
    """What samples are to be good at: ``reward(x, cond=None)`` -> ``[batch]``, larger is better.

    ``x`` has shape ``[batch, *event]``. The function is pure, and value i depends on row i alone.
    """

    def __call__(self, x: Array, cond: Any = None, /) -> Array:
        """Reward of each row."""
        ...


class Batch(NamedTuple):
    """Rows for one training step, already paired. All leaves have the leading axis ``rows``."""

    x0: Array
    """Source end ``[rows, *event]``."""
    x1: Array | None
    """Data end ``[rows, *event]``; None where a method makes its own."""
    key: Array
    """One typed key per row ``[rows]``: all randomness of a row comes from it, so that a run does not
    depend on how rows are spread over devices."""
    cond: Any = None
    """Condition of the data end: a pytree of ``[rows, ...]``, or None."""
    source_cond: Any = None
    """Condition of the source end, likewise."""
    weight: Array | None = None
    """Positive weights ``[rows]`` of the rows in the loss; None means one each."""


class Terms(NamedTuple):
    """What an objective reports, row by row; the sums over rows are taken by the training step."""

    loss: Array
    """Loss of each row ``[rows]``."""
    weight: Array
    """Weight of each row ``[rows]``: the loss of a batch is ``sum(weight loss) / sum(weight)``."""
    stats: dict[str, Array]
    """Diagnostics by name, each ``[rows]``, averaged with the same weights."""


def _no_state(params: Any, base_params: Any) -> Any:
    return ()


def _batch_as_it_is(params: Any, base_params: Any, objective_state: Any, batch: Any, temperature: Any) -> Any:
    return batch


def _same_state(objective_state: Any, stats: Any, params: Any) -> Any:
    return objective_state


class Objective(NamedTuple):
    """A training method as pure functions; it knows neither optimiser nor devices.

    Only ``loss`` is obligatory. ``params`` is what the drift takes (after any adapter).
    """

    loss: Callable[[Any, Any, Any, Array], Terms]
    """``(params, base_params, rows, temperature)`` -> Terms; differentiated in ``params``."""
    prepare: Callable[[Any, Any, Any, Any, Array], Any] = _batch_as_it_is
    """``(params, base_params, objective_state, batch, temperature)`` -> rows, held fixed under differentiation. Draws
    times and noise from the rows' keys, evaluates the frozen base, rolls out, ... The result is a pytree."""
    init: Callable[[Any, Any], Any] = _no_state
    """``(params, base_params)`` -> objective_state, e.g. a moving reference or a running quantile."""
    update: Callable[[Any, Any, Any], Any] = _same_state
    """``(objective_state, stats, params)`` -> objective_state, once per training step."""
    needs_base: bool = False
    """Whether the method is meaningless without pretrained parameters."""


class Adapter(NamedTuple):
    """How the trained parameters make the parameters that the drift takes."""

    init: Callable[[Any, Any], Params]
    """``(key, base_params)`` -> trained parameters, in the state where they change nothing."""
    apply: Callable[[Params, Any], Params]
    """``(params, base_params)`` -> parameters of the drift."""

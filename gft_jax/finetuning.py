"""The training step, one for every method: objective, optimiser, cooling and adapter make a fine-tuner."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Key

from gft_jax import cooling as coolings
from gft_jax.accumulation import microbatches, sum_of_parts
from gft_jax.cooling import Cooling
from gft_jax.sampling.arguments import checked_count
from gft_jax.types import Adapter, Batch, Objective, Params


class Spread(NamedTuple):
    """How rows and parameters of a step are spread over devices; the defaults are those of a single one."""

    sum: Callable[[Any], Any] = lambda sums: sums
    """Sums a pytree of arrays over the devices, where the step is given the rows of one of them alone."""
    gather: Callable[[Any], Any] = lambda params: params
    """Makes whole on every device what each holds a part of; differentiable."""
    num_shares: int = 1
    """Number of devices over which the rows given are spread, in equal shares one after another; of each share a
    micro-batch takes its part."""
    place: Callable[[Any], Any] = lambda state: state
    """Puts a state where the steps want it, also inside jit."""


ALONE = Spread()


def full() -> Adapter:
    """All parameters are trained, starting at the pretrained ones.

    Those of a base in half precision start at the same values in float32, since in half precision most updates would be
    lost. Parameters given to ``init`` of the fine-tuner keep their dtypes.
    """

    def init(key: Key[Array, ""], base_params: Params) -> Params:
        if base_params is None:
            raise ValueError(
                "without base_params there is nothing to start from: give base_params (to fine-tune a "
                "pretrained drift) or params (to train from scratch)"
            )
        return jax.tree.map(_at_least_float32, base_params)

    return Adapter(init, lambda params, base_params: params)


class TrainState(NamedTuple):
    """All that a resume needs, and nothing else. The frozen base is not part of it."""

    step: Array
    """Number of steps taken, int32 scalar."""
    params: Params
    """The trained parameters."""
    averaged_params: Params
    """Their exponential moving average, in float32 at least, or None."""
    opt_state: Any
    """State of the optimiser."""
    objective_state: Any
    """State of the objective."""
    cooling_state: Any
    """State of the cooling."""


class StepInfo(NamedTuple):
    """What a step reports; scalars."""

    loss: Array
    """Weighted mean of the objective over the batch, before the update."""
    temperature: Array
    """Temperature beta of this step."""
    grad_norm: Array
    """Euclidean norm of the gradient, before any clipping by the optimiser."""
    is_finite: Array
    """False where loss, gradient or updated parameters were not finite: the update was then left out, and only
    ``step`` advanced."""
    stats: dict[str, Array]
    """Weighted means of the objective's diagnostics."""


class FineTuner(NamedTuple):
    """A training method as pure functions, to be jitted, mapped or scanned as the caller likes.

    `gft_jax.parallel` compiles them for one device or for many.
    """

    init: Callable[..., TrainState]
    """``(key, base_params=None, params=None, spread=ALONE)`` -> state. The arrays are copied: a state that is donated
    never deletes the caller's weights. With ``params`` training starts there, else where the adapter starts."""
    step: Callable[..., tuple[TrainState, StepInfo]]
    """``(state, base_params, batch, spread=ALONE)`` -> ``(state, info)``. `Spread` tells of several devices."""
    step_many: Callable[..., tuple[TrainState, StepInfo]]
    """The same for batches stacked along a new leading axis, in one ``lax.scan``; infos are stacked likewise.
    It pays where a single step takes less than about 2 ms."""


def prepared_rows(
    objective: Objective,
    params: Params,
    base_params: Params,
    objective_state: Any,
    batch: Batch,
    temperature: Array,
) -> Any:
    """What the objective makes of a batch, held fixed under differentiation, also where it depends on the base."""
    frozen = jax.lax.stop_gradient(params)
    return jax.lax.stop_gradient(objective.prepare(frozen, base_params, objective_state, batch, temperature))


def loss_sums(
    objective: Objective, params: Params, base_params: Params, rows: Any, temperature: Any
) -> tuple[Array, tuple[Array, dict[str, Array]]]:
    """Sums over prepared rows: ``(weighted loss, (weights, weighted stats))``, differentiable in ``params``.

    Sums, since sums of several devices or micro-batches add up and means do not.
    """
    terms = objective.loss(params, base_params, rows, temperature)
    for name, values in {"loss": terms.loss, **terms.stats}.items():
        if values.ndim != 1 or values.shape != terms.weight.shape:
            raise ValueError(
                f"an objective reports one value a row, with the weight of the row; {name} has shape {values.shape}, "
                f"weight {terms.weight.shape}"
            )
    stats = {name: jnp.sum(terms.weight * value) for name, value in terms.stats.items()}
    return jnp.sum(terms.weight * terms.loss), (jnp.sum(terms.weight), stats)


def mean_loss(
    objective: Objective,
    params: Params,
    base_params: Params,
    batch: Batch,
    temperature: Any = 0.0,
    objective_state: Any = (),
) -> tuple[Array, dict[str, Array]]:
    """Weighted mean loss of a batch and its diagnostics, for a training loop of your own.

    ``jax.value_and_grad(..., argnums=1, has_aux=True)`` of it is what `finetuner` takes its steps with.

    Args:
        objective: the training method.
        params: parameters of the drift; differentiable.
        base_params: pretrained parameters, or None where the method needs none.
        batch: paired rows.
        temperature: scalar beta >= 0.
        objective_state: of methods that have one: ``objective.init(params, base_params)``.

    Raises:
        ValueError: if the method needs a base and there is none, the temperature is negative, or the state is not like
            that of the method.
    """
    _check_base(objective, base_params)
    _check_state(objective, params, base_params, objective_state)
    if not isinstance(temperature, Tracer) and not temperature >= 0.0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    temperature = jnp.asarray(temperature)
    rows = prepared_rows(objective, params, base_params, objective_state, batch, temperature)
    total, (weight, stats) = loss_sums(objective, params, base_params, rows, temperature)
    return total / weight, {name: value / weight for name, value in stats.items()}


def finetuner(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    cooling: Cooling | None = None,
    *,
    adapter: Adapter | None = None,
    averaging: float | None = 0.999,
    num_updates: int = 1,
    num_microbatches: int = 1,
) -> FineTuner:
    """The training step of a method.

    Each step takes the temperature from the cooling, lets the objective prepare the rows, forms the gradient of
    the weighted mean loss over all rows of all devices, updates the parameters by the optimiser, and their
    average, and hands the diagnostics to objective and cooling. A step whose loss or gradient is not finite
    changes nothing but the step number, and says so.

    Args:
        objective: the training method.
        optimizer: any optax transformation; clipping, schedules and masks belong there.
        cooling: temperature by step; default zero, for methods that have none.
        adapter: which parameters are trained; default all.
        averaging: decay d in [0, 1) of the averaged parameters, which start at the initial ones and warm up:
            at step n the decay is ``min(d, (1 + n) / (10 + n))``. None keeps no average.
        num_updates: updates of the optimiser on each batch as it was prepared once, >= 1. It pays where preparing is
            dear, as the paths and adjoints of reward fine-tuning are. From the second update on these are of
            parameters of a few updates ago: the gradient is biased, by more for more updates and higher learning rates,
            though what the regressions lead to, once the parameters rest, is the same. The report, and what
            objective and cooling see, are of the first update; the average is taken once, after the last.
        num_microbatches: parts k >= 1 into which the rows of a batch (of each device, on many) are divided. They are
            prepared and differentiated one after another and their sums added up, in float32 at least: the step is
            that of the whole batch, also with unequal weights of rows, and holds intermediate values of ``rows / k``
            rows at a time. Objectives that look at several rows at once (`gft_jax.objectives.reward_weighting` with a
            coupling) see those of a part, as they see those of a device.

    Raises:
        ValueError: for a decay outside [0, 1), or fewer than one update or micro-batch; from ``init``, if the method
            needs a base and there is none, or parameters are not finite or not of floating-point type; from a step, if
            the rows of a device do not divide into micro-batches.
    """
    if averaging is not None and not 0.0 <= averaging < 1.0:
        raise ValueError(f"averaging is a decay in [0, 1), or None, got {averaging}")
    num_updates = checked_count("num_updates", num_updates)
    num_microbatches = checked_count("num_microbatches", num_microbatches)
    cooling = coolings.constant(temperature=0.0) if cooling is None else cooling
    adapter = full() if adapter is None else adapter

    def init(
        key: Key[Array, ""], base_params: Params = None, params: Params = None, spread: Spread = ALONE
    ) -> TrainState:
        _check_base(objective, base_params)
        params = adapter.init(key, base_params) if params is None else params
        _check_finite("base_params", base_params)
        _check_finite("params", params)
        _check_trainable(params)
        return start(spread.place(params), base_params, spread)

    @functools.partial(jax.jit, static_argnums=2)  # one program instead of one for every leaf
    def start(params: Params, base_params: Params, spread: Spread) -> TrainState:
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=_copied(params),
            averaged_params=None if averaging is None else jax.tree.map(_at_least_float32, _copied(params)),
            opt_state=_copied(optimizer.init(params)),
            objective_state=_copied(objective.init(adapter.apply(params, base_params), base_params)),
            cooling_state=cooling.init(),
        )
        return spread.place(state)

    def step(
        state: TrainState, base_params: Params, batch: Batch, spread: Spread = ALONE
    ) -> tuple[TrainState, StepInfo]:
        _check_base(objective, base_params)
        temperature = cooling.temperature(state.cooling_state, state.step)
        base = spread.gather(base_params)

        def prepared(batch: Batch) -> Any:
            params = adapter.apply(spread.gather(state.params), base)
            objective_state = spread.gather(state.objective_state)
            return prepared_rows(objective, params, base, objective_state, batch, temperature)

        def sums_of(params: Params, rows: Any) -> Any:
            def local_sums(params: Params) -> tuple[Array, tuple[Array, dict[str, Array]]]:
                params = adapter.apply(spread.gather(params), base)
                return loss_sums(objective, params, base, rows, temperature)

            return jax.value_and_grad(local_sums, has_aux=True)(params)

        if num_microbatches == 1:
            local = functools.partial(sums_of, rows=prepared(batch))
        else:
            parts = microbatches(batch, num_microbatches, spread.num_shares)
            if num_updates == 1:  # what is prepared is needed once, and never held for all parts
                local = functools.partial(
                    sum_of_parts, lambda params, part: sums_of(params, prepared(part)), parts
                )
            else:
                local = functools.partial(sum_of_parts, sums_of, jax.lax.map(prepared, parts))

        def update(params: Params, opt_state: Any) -> tuple[Params, Any, tuple[Array, Array, Any]]:
            (total, (weight, stats)), gradient = spread.sum(local(params))
            loss, stats, gradient = jax.tree.map(lambda value: value / weight, (total, stats, gradient))
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, (loss, optax.tree.norm(gradient), stats)

        params, opt_state, (loss, grad_norm, stats) = update(state.params, state.opt_state)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        for _ in range(num_updates - 1):
            params, opt_state, (later_loss, later_norm, _) = update(params, opt_state)
            is_finite &= jnp.isfinite(later_loss) & jnp.isfinite(later_norm)
        is_finite &= _all_finite(params)
        new = TrainState(
            step=state.step + 1,
            params=params,
            averaged_params=_average(averaging, state.step, state.averaged_params, params),
            opt_state=opt_state,
            objective_state=objective.update(
                state.objective_state, stats, adapter.apply(params, base_params)
            ),
            cooling_state=cooling.update(state.cooling_state, state.step, stats),
        )
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
        return kept._replace(step=new.step), StepInfo(loss, temperature, grad_norm, is_finite, stats)

    def step_many(
        state: TrainState, base_params: Params, batches: Batch, spread: Spread = ALONE
    ) -> tuple[TrainState, StepInfo]:
        return jax.lax.scan(lambda state, batch: step(state, base_params, batch, spread), state, batches)

    return FineTuner(init, step, step_many)


def _average(decay: float | None, step: Array, averaged: Params, params: Params) -> Params:
    if decay is None:
        return None
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda old, new: (keep * old + (1.0 - keep) * new).astype(old.dtype), averaged, params
    )


def _check_base(objective: Objective, base_params: Params) -> None:
    if objective.needs_base and base_params is None:
        raise ValueError(
            "this method fine-tunes a pretrained drift and base_params is None: give the pretrained parameters, "
            "or use objectives.flow_matching to train from scratch"
        )


def _check_state(objective: Objective, params: Params, base_params: Params, objective_state: Any) -> None:
    expected = jax.tree.structure(jax.eval_shape(objective.init, params, base_params))
    if expected != jax.tree.structure(objective_state):
        raise ValueError(
            f"this method has a state, {expected}, and objective_state is {jax.tree.structure(objective_state)}: give "
            "objective.init(params, base_params), and what objective.update makes of it after each step"
        )


def _check_trainable(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"trained parameters must be floating-point arrays; params{jax.tree_util.keystr(path)} has dtype "
                f"{jnp.result_type(leaf)}. Pass such constants to the drift in another way than by params."
            )


def _check_finite(name: str, params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        bad = sum(int(np.size(part) - np.isfinite(part).sum()) for part in _parts_here(leaf))
        if bad:
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{where} holds {bad} values that are not finite, of {np.size(leaf)}")


def _parts_here(leaf: Any) -> list[np.ndarray]:
    """The parts of an array that are on devices of this process, each once."""
    if not isinstance(leaf, jax.Array):
        return [np.asarray(leaf)]
    return [
        np.asarray(part) for part in {str(each.index): each.data for each in leaf.addressable_shards}.values()
    ]


def _all_finite(params: Params) -> Array:
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])
    # XLA copies what is cheap into the program of each leaf that is kept or not by it: of n leaves these would be n
    # times n flags, and in a loop minutes of compilation for a deep network. It does not copy a root.
    return jnp.sqrt(jnp.sum(~finite, dtype=jnp.float32)) == 0


def _at_least_float32(leaf: Any) -> Any:
    # In half precision an average with a decay near one would not move.
    dtype = jnp.result_type(leaf)
    return (
        jnp.asarray(leaf, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else leaf
    )


def _copied(tree: Any) -> Any:
    # Under jit too: an output that is an input would otherwise share its buffer, and donating it delete both.
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

"""What is done where loss or gradient are not finite: the run stops, or leaves out the batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gft_jax.finetuning import StepInfo, TrainState, prepared_rows
from gft_jax.objectives.path_rows import PathRows
from gft_jax.types import Batch, Objective, Params

NUM_BINS = 10
"""Equal bins of flow time in which rows are named."""


class Stopped(Exception):
    """A run that cannot go on; the message says why, and what to do."""


class NonFinite(NamedTuple):
    """A step that changed nothing, because its loss or gradient was not finite."""

    step: int
    """Counted from 1, as in the log."""
    text: str
    """Which step, with its loss, gradient norm and, where known, rows and flow times."""


def check_finite(infos: StepInfo, step: int, what: str, advice: str) -> None:
    """Stops a run whose loss or gradient was not finite.

    Args:
        infos: of a chunk of steps.
        step: the first of them.
        what: name of the run.
        advice: what can be done.

    Raises:
        Stopped: naming the first such step.
    """
    bad = not_finite(infos)
    if len(bad):
        raise Stopped(f"{what}: {describe(infos, step, int(bad[0])).text}; {advice}")


def not_finite(infos: StepInfo) -> np.ndarray:
    """Indices of the steps of a chunk that were not finite."""
    return np.flatnonzero(~np.asarray(infos.is_finite))


def describe(infos: StepInfo, step: int, index: int, where: str = "") -> NonFinite:
    """The step of an index of a chunk that begins at ``step``."""
    number = step + index + 1
    text = f"loss or gradient is not finite at step {number} (loss {infos.loss[index]}, gradient norm "
    text += f"{infos.grad_norm[index]})"
    return NonFinite(number, text + (f": {where}" if where else ""))


def where_not_finite(
    objective: Objective, state: TrainState, base_params: Params, batch: Batch, temperature: Any
) -> str:
    """Rows of a batch whose loss is not finite, and the bins of flow time that they lie in, in words.

    The loss is computed again, with the parameters as they are after the chunk: those of the step itself, unless
    later steps of the chunk went well. Nothing of it is computed while all goes well.
    """

    @jax.jit
    def losses(
        params: Params, base_params: Params, objective_state: Any, batch: Batch, temperature: Any
    ) -> Any:
        rows = prepared_rows(objective, params, base_params, objective_state, batch, temperature)
        nodes = jax.tree.leaves(rows, is_leaf=lambda node: isinstance(node, PathRows))
        times = [node.t for node in nodes if isinstance(node, PathRows)]
        return objective.loss(params, base_params, rows, temperature).loss, times[:1]

    loss, times = jax.device_get(
        losses(state.params, base_params, state.objective_state, batch, jnp.asarray(temperature))
    )
    bad, num_rows = ~np.isfinite(loss), len(loss)
    ends = [leaf for leaf in (batch.x0, batch.x1) if leaf is not None]
    broken = sum(~np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1) for leaf in ends)
    text = (
        f"{np.count_nonzero(broken)} of its rows hold values that are not finite; " if np.any(broken) else ""
    )
    if not bad.any():
        return text + "the loss of every row is finite, by the parameters after this chunk"
    text += f"the loss of {np.count_nonzero(bad)} of {num_rows} rows is not"
    if not times or len(times[0]) != num_rows:
        return text
    return f"{text}, at flow times in {_bins(times[0][bad])}"


def _bins(times: np.ndarray) -> str:
    """Bins of [0, 1] that hold the times; neighbours are joined."""
    if not np.isfinite(times).all():
        return "that are not finite themselves"
    held = np.unique(np.minimum((times * NUM_BINS).astype(int), NUM_BINS - 1))
    groups = np.split(held, np.flatnonzero(np.diff(held) > 1) + 1)
    return ", ".join(f"[{group[0] / NUM_BINS:g}, {(group[-1] + 1) / NUM_BINS:g}]" for group in groups)

"""What is logged of adjoint matching and its like, and when a run of it is stopped."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.loop import Stopped
from gft_jax.finetuning import StepInfo

STATS = ("adjoint_norm", "reward_gradient_norm", "zero_gradient", "squared_control", "base_distance")
"""Diagnostics that are logged of the methods that have them."""


def means(stats: Mapping[str, Any]) -> dict[str, float]:
    """Means of the diagnostics over the steps."""
    return {name: float(np.mean(stats[name])) for name in STATS if name in stats}


def check_adjoints(limit: float, infos: StepInfo, step: int, what: str, advice: str) -> None:
    """Stops a run whose adjoints explode, at the first such step.

    Args:
        limit: largest ratio of the mean norms of adjoint and reward gradient.
        infos: of a chunk of steps.
        step: the first of them.
        what: name of the run.
        advice: what can be done.

    Raises:
        Stopped: naming the step, and how large what was.
    """
    if "adjoint_norm" in infos.stats:
        adjoint, gradient = (np.asarray(infos.stats[key]) for key in ("adjoint_norm", "reward_gradient_norm"))
        # An explosion ends in nan, which is not above any limit.
        bad = np.flatnonzero(~(adjoint <= limit * gradient))
        if len(bad) and np.all(np.asarray(infos.is_finite)[: bad[0]]):
            first = int(bad[0])
            reason = (
                f"the adjoint explodes at step {step + first + 1}: its mean norm is {adjoint[first]:.3g}, more "
                f"than --adjoint-limit {limit:g} times the {gradient[first]:.3g} of the reward's gradient"
            )
            if not np.isfinite(gradient[first]):
                reason = f"the reward's gradient is not finite at step {step + first + 1}"
            raise Stopped(f"{what}: {reason}; {advice}")

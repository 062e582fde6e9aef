"""Which steps are kept: the newest, the best by a metric, and every n-th."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationContext,
    PreservationPolicy,
)

Metrics = Mapping[str, float]


class Best(NamedTuple):
    """The metric by which one checkpoint is the best, such as ``Best("w2")``."""

    metric: str
    """Its name among the metrics that `Checkpoints.save` is given."""
    better: Literal["lower", "higher"] = "lower"
    """Which direction is better."""

    def of(self, metrics: Mapping[int, Metrics]) -> int | None:
        """The best step of some, by their metrics: the first of equals; None if none has a finite value.

        A step whose metric is missing or not finite is never the best.
        """
        sign = {"lower": 1.0, "higher": -1.0}[self.better]
        values = {step: sign * values.get(self.metric, math.nan) for step, values in metrics.items()}
        finite = [step for step, value in values.items() if math.isfinite(value)]
        return min(finite, key=lambda step: (values[step], step), default=None)


class _KeepBest(PreservationPolicy):
    """Not Orbax's ``BestN``, which ranks nan like any number and, of equal ones, keeps the last."""

    def __init__(self, best: Best):
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        best = self._best.of({info.step: info.metrics or {} for info in checkpoints})
        return [info.step == best for info in checkpoints]


def policy_of(latest: int | None, best: Best | None, every: int | None) -> AnyPreservationPolicy:
    """Keeps a step that any of the three rules keeps.

    Raises:
        ValueError: a number out of range, or an unknown direction.
    """
    if latest is not None and latest < 1:
        raise ValueError(f"keep_latest must be >= 1, or None to keep all steps, got {latest}")
    if every is not None and every < 1:
        raise ValueError(f"keep_every must be >= 1, or None to keep no others, got {every}")
    if best is not None and best.better not in ("lower", "higher"):
        raise ValueError(f'keep_best.better must be "lower" or "higher", got {best.better!r}')
    policies: list[PreservationPolicy] = [LatestN(latest)]
    if best is not None:
        policies.append(_KeepBest(best))
    if every is not None:
        policies.append(EveryNSteps(every))
    return AnyPreservationPolicy(policies)

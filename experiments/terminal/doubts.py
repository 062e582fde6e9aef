"""What a report says against its own terminal methods: a ratio that was not learned, weights of too few rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.summary import Record

LEAST_LOG_LOSS = 0.1
"""Nats below which the classifier tells nearly all samples apart: the laws hardly overlap."""
LEAST_ROWS = 100
"""Effective number of rows below which a weighted law rests on a few of them."""
_ROWS = {"terminal-target": ("target_rows", "num_target"), "terminal-base": ("base_rows", "num_base_samples")}


def doubts(config: Mapping[str, Any], rows: Sequence[Record], methods: Sequence[str]) -> Iterable[str]:
    """What is doubtful about the ratio and its weights, a sentence each; nothing of a run without a ratio."""
    log_loss, settings = config.get("ratio_log_loss", math.inf), config.get("config", {})
    if log_loss < LEAST_LOG_LOSS:
        yield (
            f"A classifier tells new data and samples of the base apart with a log loss of {log_loss:.3f} nats: the "
            "two laws hardly overlap, and the ratio, on which the terminal methods rest, is a guess. No weights can "
            "mend that."
        )
    if config.get("ratio_steps_kept") == 0:
        yield (
            "The classifier learned nothing from so few samples: the ratio is one everywhere, terminal-target is plain "
            "flow matching, and terminal-base and terminal-reward aim at the base."
        )
    for method in methods:
        key, number = _ROWS.get(method, ("", ""))
        sizes = [
            (row[key] * settings[number], row["target_weight"])
            for row in rows
            if row["kind"] == "effective sample size" and key in row and number in settings
        ]
        fewest, weight = min(sizes, default=(math.inf, 0.0))
        if fewest < LEAST_ROWS:
            yield (
                f"{method}: at target weight {weight:g} the weights of its {settings[number]} rows are worth "
                f"{fewest:.0f}: the law that it learns there rests on these few."
            )

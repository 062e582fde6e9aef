"""The section of a report on who was paired with whom: diagnostics of the pairings along the run."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from experiments.summary import Record


class _Line(NamedTuple):
    """A line of the table."""

    title: str
    value: Any
    """Of a record."""
    meaning: str


_LINES = (
    _Line("cost", lambda row: row["cost"], "mean squared distance of noise and data in a pair"),
    _Line("cost, optimal", lambda row: row["optimal_cost"], "of the least costly pairing of the same rows"),
    _Line(
        "cost, independent",
        lambda row: row["independent_cost"],
        "expected of a random pairing of the same rows",
    ),
    _Line("excess", lambda row: row["excess"], "0: optimal; 1: no better than a random pairing"),
    _Line(
        "sources used", lambda row: row["distinct_sources"], "share of the noise rows that are in some pair"
    ),
    _Line("data used", lambda row: row["distinct_targets"], "share of the data rows that are in some pair"),
    _Line(
        "effective rows",
        lambda row: row["effective_rows"],
        "(Σ w)² / (n Σ w²) of the row weights; 1: all weigh alike",
    ),
    _Line(
        "partners",
        lambda row: np.exp(row["entropy"]),
        "effective number that a row chooses from: exp(entropy)",
    ),
    _Line(
        "marginal error",
        lambda row: row["marginal_error"],
        "L1; 0: every row is used as often as it should be",
    ),
)


def coupling_section(config: Mapping[str, Any], rows: Sequence[Record]) -> str:
    """The section of the page, as HTML; nothing where the log has no pairings."""
    found = [row for row in rows if row["kind"] == "coupling"]
    if not found:
        return ""
    body = []
    for line in _LINES:
        values = [float(line.value(row)) for row in found]
        cells = "".join(
            f"<td>{_number(value)}</td>" for value in (sum(values) / len(values), min(values), max(values))
        )
        body.append(
            f'<tr><th scope="row">{escape(line.title)}</th>{cells}<td class="text">{escape(line.meaning)}</td></tr>'
        )
    name = config.get("config", {}).get("coupling", "not recorded")
    failed = sum(not row["converged"] for row in found)
    converged = "All converged." if not failed else f"<strong>{failed} of them did not converge.</strong>"
    return f"""<section>
<h2>Coupling</h2>
<p class="small">{escape(str(name))}: diagnostics of {len(found)} pairings along the run, at the start and with each
checkpoint, before training on them. {converged}</p>
<div class="scroll"><table class="results"><thead><tr><th></th><th scope="col">mean</th><th scope="col">least</th>
<th scope="col">largest</th><th scope="col">meaning</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>
</section>
"""


def unconverged(rows: Sequence[Record]) -> list[str]:
    """A sentence where pairings did not converge; what to do is in it."""
    found = [row for row in rows if row["kind"] == "coupling"]
    failed = [row for row in found if not row["converged"]]
    if not failed:
        return []
    steps = ", ".join(str(row["step"]) for row in failed[:5])
    error = max(row["marginal_error"] for row in failed)
    return [
        f"The coupling did not converge in {len(failed)} of {len(found)} diagnosed pairings (steps {steps}; marginal "
        f"error up to {error:.2g}): take another --coupling, or raise its epsilon or its iterations in "
        "experiments/methods.py."
    ]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "&minus;")

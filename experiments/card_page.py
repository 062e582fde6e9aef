"""The report cards on the page of a report."""

import base64
from collections.abc import Sequence
from html import escape
from itertools import groupby

from experiments.cards import SavedCard
from gft_jax.evaluation import cells
from gft_jax.evaluation.contents import in_steps

_HEAD = ("measure", "value", "interval", "base", "floor", "NFE", "unit", "better")


def card_section(cards: Sequence[SavedCard]) -> str:
    """The section of the page, as HTML; nothing without cards."""
    if not cards:
        return ""
    return f"""<section>
<h2>Report {"card" if len(cards) == 1 else "cards"}</h2>
<p class="small">Of final parameters, by <code>python -m experiments.evaluate</code>. Base: the same of the base's
samples. Floor: the same of real samples in the place of generated ones. What an interval covers is the expectation of
the metric at this number of samples, over draws of samples and data and not over training runs; where a metric has a
bias, as W₂ has, compare it with the floor and not with zero.</p>
{"".join(_card(card) for card in cards)}
</section>
"""


def _card(card: SavedCard) -> str:
    facts = card.facts
    head = "".join(f'<th scope="col">{text}</th>' for text in _HEAD)
    body = []
    for group, measures in groupby(card.measures, key=lambda measure: measure.group):
        body.append(
            f'<tr class="reference"><th colspan="{len(_HEAD)}" scope="rowgroup">{escape(group)}</th></tr>'
        )
        for measure in measures:
            name, *others = map(escape, cells(measure))
            values = "".join(f"<td>{text.replace('-', '&minus;') or '&ndash;'}</td>" for text in others)
            body.append(f'<tr><th scope="row">{name}</th>{values}</tr>')
    notes = "".join(f"<li>{escape(note)}.</li>" for note in card.notes)
    figure = base64.b64encode(card.figure).decode("ascii")
    return f"""<h3>{escape(card.name)}</h3>
<p class="small">{facts["num_samples"]} samples by {escape(facts["solver"])}
{in_steps(facts["num_steps"])}; intervals of level {facts["level"]:g} by {facts["num_halves"]} halves of the samples,
none where these are too few to cover by; floors over {facts["num_floors"]} pairs of sets.</p>
<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>
{f"<ul>{notes}</ul>" if notes else ""}
<figure><img src="data:image/png;base64,{figure}"
alt="{escape(card.name)}: quality against evaluations, velocity variance, distance to the base drift."></figure>
"""

"""A report card as text: Markdown whose columns are aligned, to be read in a terminal as well."""

from collections.abc import Sequence

from gft_jax.evaluation.contents import Measure, ReportCard, in_steps
from gft_jax.evaluation.nfe import NfeCurve


def markdown(card: ReportCard) -> str:
    """Tables of the measures and of quality against evaluations, and the notes, as Markdown."""
    curve = card.nfe_curve
    parts = [
        f"{card.num_samples} samples by {card.solver} {in_steps(card.num_steps)}. Base: the same of the base's samples "
        f"and paths. Floor: the same of real samples in the place of generated ones, over {card.num_floors} pairs of "
        f"sets. Intervals by {card.num_halves} halves of the samples; none where these are too few to cover by.",
        _measures(card),
        f"Quality against evaluations; floors {number(curve.floor_w2)} and {number(curve.floor_energy_distance)}:",
        _curve(curve),
        *(f"Note: {note}." for note in card.notes),
    ]
    return "\n\n".join(parts) + "\n"


def _measures(card: ReportCard) -> str:
    head = ("", "measure", "value", f"{card.level:.0%} interval", "base", "floor", "NFE", "unit", "better")
    rows = []
    for i, measure in enumerate(card.measures):
        is_first = i == 0 or measure.group != card.measures[i - 1].group
        rows.append((measure.group if is_first else "", *cells(measure)))
    return _table(head, rows, numeric=range(2, 7))


def cells(measure: Measure) -> tuple[str, ...]:
    """Name, value, interval, base, floor, NFE, unit and direction as text."""
    interval = "none"
    if measure.low is not None and measure.high is not None:
        interval = f"{number(measure.low)} to {number(measure.high)}"
    return (
        title(measure.name),
        number(measure.value),
        interval,
        "" if measure.base is None else number(measure.base),
        "" if measure.floor is None else number(measure.floor),
        str(measure.num_evaluations),
        measure.unit,
        measure.better,
    )


def _curve(curve: NfeCurve) -> str:
    head = ("solver", "steps", "NFE", "W2", "energy distance")
    rows = []
    for point in curve.points:
        values = [f"failed: {point.failure}", ""]
        if point.w2 is not None and point.energy_distance is not None:
            values = [number(point.w2), number(point.energy_distance)]
        rows.append((point.solver, str(point.num_steps), str(point.num_evaluations), *values))
    return _table(head, rows, numeric=range(1, 5))


def title(name: str) -> str:
    """Name of a measure for readers."""
    words = {"w2": "W2", "kl": "KL", "mmd": "MMD", "vendi": "Vendi", "frechet": "Frechet"}
    words |= {"sinkhorn": "Sinkhorn", "spearman": "Spearman"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def number(value: float) -> str:
    """Four digits, or four decimals for what is near zero: a value and its interval are read side by side."""
    text = f"{value:#.4g}" if abs(value) >= 1 else f"{value:.4f}"
    return "0.0000" if text == "-0.0000" else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: range) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(texts: Sequence[str]) -> str:
        aligned = [
            text.rjust(width) if i in numeric else text.ljust(width)
            for i, (text, width) in enumerate(zip(texts, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * (w - 1) + (":" if i in numeric else "-") for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])

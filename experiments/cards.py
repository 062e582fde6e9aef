"""Report cards in a run folder: ``RUN/cards/NAME`` holds ``card.json``, ``card.md`` and ``card.png``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments import plots
from experiments.files import read_json, write_atomically
from gft_jax.evaluation import Measure, NfeCurve, NfePoint, ReportCard, markdown

_FACTS = ("num_samples", "solver", "num_steps", "level", "num_halves", "num_floors")


class SavedCard(NamedTuple):
    """What is left of a report card in its folder: all but the arrays."""

    name: str
    """Method, with its seed."""
    facts: Mapping[str, Any]
    """Numbers of samples, steps, halves and floors, solver, level, and what was judged."""
    measures: tuple[Measure, ...]
    nfe_curve: NfeCurve
    notes: tuple[str, ...]
    figure: bytes
    """PNG."""


def write_card(folder: Path, card: ReportCard, facts: Mapping[str, Any], figure: Figure) -> None:
    """Writes a card, its table and its figure; ``card.json`` last, so that none of half the files is read."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "card.json"
    path.unlink(missing_ok=True)
    plots.save(figure, folder / "card.png")
    write_atomically(folder / "card.md", markdown(card))
    curve = card.nfe_curve
    content = {
        **facts,
        **{name: getattr(card, name) for name in _FACTS},
        "measures": [measure._asdict() for measure in card.measures],
        "nfe_curve": curve._asdict() | {"points": [point._asdict() for point in curve.points]},
        "notes": card.notes,
    }
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_cards(run: Path) -> list[SavedCard]:
    """The cards of a run, by name.

    Raises:
        ValueError: a file cannot be read.
    """
    return [_read(path) for path in sorted((run / "cards").glob("*/card.json"))]


def _read(path: Path) -> SavedCard:
    content = read_json(path)
    try:
        measures = tuple(Measure(**measure) for measure in content.pop("measures"))
        curve = content.pop("nfe_curve")
        points = tuple(NfePoint(**point) for point in curve.pop("points"))
        notes = tuple(content.pop("notes"))
        missing = [name for name in _FACTS if name not in content]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}: make the card again, or remove it")
        figure = path.with_name("card.png").read_bytes()
        return SavedCard(path.parent.name, content, measures, NfeCurve(points, **curve), notes, figure)
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it for a report without it") from error

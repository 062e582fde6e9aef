"""Tables, figure and page of `cheaper`."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.benchmarks.cheaper import Outcome, Plan, Score, whole_steps
from experiments.benchmarks.variants import FULL, NUM_STEPS
from experiments.files import write_atomically
from experiments.plots import REFERENCE, STYLE, look, save

_COLUMNS = {
    "reward": ("reward", 2),
    "displacement": ("moved^2", 2),
    "base_energy_distance": ("energy to base", 3),
}
_DASHES = ("--", "-")


def write(folder: Path, name: str, plan: Plan, outcome: Outcome, command: str, facts: dict[str, Any]) -> str:
    """Writes ``name.md``, ``name.png`` and ``name.json`` to the folder, and returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    save(curves(plan, outcome), folder / f"{name}.png")
    scores = [score._asdict() for score in outcome.scores]
    found = {"machine": facts, **outcome._replace(scores=[])._asdict(), "scores": scores}
    write_atomically(folder / f"{name}.json", json.dumps(found, indent=2) + "\n")
    text = page(plan, outcome, command, facts, f"{name}.png")
    write_atomically(folder / f"{name}.md", text)
    return text


def page(plan: Plan, outcome: Outcome, command: str, facts: Mapping[str, Any], figure: str) -> str:
    """The page in Markdown.

    Args:
        plan: what was done.
        outcome: what was found.
        command: that does it.
        facts: of the machine.
        figure: name of the figure's file.
    """
    config, base = plan.config, outcome.base
    of_base = ", ".join(f"{title} {base[key]:.{digits}f}" for key, (title, digits) in _COLUMNS.items())
    parts = [
        "# What cheaper updates of adjoint matching buy",
        f"    {command}",
        f"Deterministic adjoint matching of one base on digits (residual MLP of width {config.hidden}), for the "
        f"log-probability of the class {config.target_class} by a classifier: {NUM_STEPS} Euler steps, batches of "
        f"{config.batch_size}, Adam with rate {config.learning_rate:g} on gradients clipped at norm 1, raw parameters; "
        f"{len(plan.seeds)} seeds. Scores are of the same noise for all, by {NUM_STEPS} equal Euler steps. *moved^2*: "
        "mean squared distance to the base's samples of the same noise; *energy to base*: energy distance to "
        f"samples of the base from other noise. The base: {of_base}.",
        "At the same lambda a truncated adjoint asks for less control, so each has lambdas of its own: compare the "
        "reward with the distance it costs, not one row with another. Cells are means over the seeds, with the range.",
        "## Time of an update",
        "Medians of interleaved measurements, without compilation. Of updates that share a path, each has its share.",
        _speeds(plan, outcome),
    ]

    def number_of(updates: int) -> Callable[[str], int]:
        return lambda name: whole_steps(updates, plan.variants[name].num_updates)

    for number in plan.equal_updates:
        parts += [f"## After {number} updates", _table(plan, outcome, number_of(number))]
    budget = plan.equal_time * outcome.seconds[FULL]
    parts += [
        f"## After {budget:.1f} s of training, the time of {plan.equal_time} updates with the full adjoint",
        _table(plan, outcome, outcome.at_time.__getitem__, with_updates=True),
        f"![Reward against seconds of training and against displacement]({figure})",
        "Lines: means over the seeds, along training; solid for the stronger lambda of each, dashed for the weaker.",
        "; ".join(f"{fact}: {value}" for fact, value in facts.items() if fact != "versions")
        + "; "
        + ", ".join(f"{package} {version}" for package, version in facts["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def curves(plan: Plan, outcome: Outcome) -> Figure:
    """Reward against seconds of training, and against displacement."""
    names = list(plan.variants)
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.6))
        left, right = figure.subplots(1, 2)
        for name, level, rows in _lines(plan, outcome):
            style = look(name, names) | {"linestyle": _DASHES[level % 2], "linewidth": 1.4}
            reward, moved, seconds = (
                [_mean(by_moment, key) for by_moment in rows] for key in ("reward", "displacement", "seconds")
            )
            left.plot(seconds, reward, **style)
            right.plot(moved, reward, **style)
        budget = plan.equal_time * outcome.seconds[FULL]
        left.axvline(budget, color=REFERENCE, linestyle=":", linewidth=1.2)
        left.set_xscale("log")
        _describe(left, "Reward against time", "dotted: the equal time of the table", "seconds of training")
        right.plot(0, outcome.base["reward"], color=REFERENCE, marker="*", markersize=12, linestyle="none")
        words = "up and left is better; star: base"
        _describe(right, "Reward against displacement", words, "mean squared displacement (moved^2)")
        handles = [
            Line2D([], [], label=variant.words, **look(name, names))
            for name, variant in plan.variants.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _describe(ax: Axes, title: str, subtitle: str, label: str) -> None:
    ax.set(title=title, xlabel=label, ylabel="mean reward")
    ax.text(0, 1.025, subtitle, transform=ax.transAxes, fontsize=9.5, color="#555555")


def _lines(plan: Plan, outcome: Outcome) -> Iterable[tuple[str, int, list[list[Score]]]]:
    """Variant, place of lam, and its scores by moment."""
    for name in plan.variants:
        of_variant = [score for score in outcome.scores if score.variant == name]
        for level in sorted({score.level for score in of_variant}):
            chosen = [score for score in of_variant if score.level == level]
            moments = sorted({score.updates for score in chosen})
            yield name, level, [[s for s in chosen if s.updates == moment] for moment in moments]


def _mean(scores: Sequence[Score], key: str) -> float:
    return float(np.mean([score.seconds if key == "seconds" else score.scores[key] for score in scores]))


def _speeds(plan: Plan, outcome: Outcome) -> str:
    full = outcome.seconds[FULL]
    rows = [
        (variant.words, f"{1e3 * outcome.seconds[name]:.1f}", f"{full / outcome.seconds[name]:.1f}")
        for name, variant in plan.variants.items()
    ]
    return _markdown(("update", "ms", "full / this"), rows)


def _table(plan: Plan, outcome: Outcome, updates_of: Callable[[str], int], with_updates: bool = False) -> str:
    rows = []
    for name, _, moments in _lines(plan, outcome):
        (scores,) = (each for each in moments if each[0].updates == updates_of(name))
        numbers = (str(scores[0].updates),) if with_updates else ()
        cells = tuple(
            _cell([score.scores[key] for score in scores], digits) for key, (_, digits) in _COLUMNS.items()
        )
        rows.append((plan.variants[name].words, f"{scores[0].strength:g}", *numbers, *cells))
    updates = ("updates",) if with_updates else ()
    return _markdown(("update", "lambda", *updates, *(title for title, _ in _COLUMNS.values())), rows)


def _cell(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)

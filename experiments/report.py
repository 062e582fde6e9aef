"""The report of a run, one self-contained page, made from the files of its folder alone.

    python -m experiments.report RUN

reads ``config.json``, ``metrics.jsonl``, ``samples.npz``, the report cards in ``cards/`` if there are any and, of a run
in the plane, ``snapshots/`` and ``trajectories.npz``; writes ``report.html``, the figures as PNG or GIF,
``summary.json``, ``summary.csv`` and ``summary.md`` next to them. What an interrupted run lacks, the report names.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import plots
from experiments.card_page import card_section
from experiments.cards import read_cards
from experiments.coupling_section import coupling_section, unconverged
from experiments.few_steps.columns import FEW_STEP_COLUMNS
from experiments.few_steps.figures import by_evaluations, few_step_panels
from experiments.few_steps.scores import FEW_STEP_SAMPLES
from experiments.files import read_arrays, read_json, write_atomically
from experiments.images.columns import IMAGE_COLUMNS
from experiments.images.figures import as_shown, images_by_step, is_image_batch
from experiments.page import listing, render, setting
from experiments.path_kl_figure import path_kls
from experiments.planar import Motion, is_planar, read_motion
from experiments.planar_animation import cooling_animation
from experiments.planar_figures import moving_samples, path_panels, scatters, target_weights
from experiments.reward.columns import REWARD_COLUMNS
from experiments.reward.figures import by_strength, pareto
from experiments.summary import (
    COLUMNS,
    Column,
    Record,
    TableRow,
    methods_of,
    read_metrics,
    runs,
    summarise,
)
from experiments.summary_text import write_summary
from experiments.terminal.doubts import doubts
from experiments.terminal.figures import TERMINAL_COLUMNS, end_law
from experiments.time_section import left_out, time_section


def write_report(folder: str | Path) -> Path:
    """Write ``report.html``, its figures and the summary files into a run folder; the path of the page.

    Raises:
        FileNotFoundError: the folder, its ``config.json`` or its ``metrics.jsonl`` is missing.
        ValueError: one of the files cannot be read.
    """
    folder = Path(folder)
    config = _read_config(folder)
    rows = read_metrics(folder)
    samples = _read_samples(folder)
    methods = _methods(config, rows)
    table, columns = _table(config, rows, methods)
    write_summary(folder, table, columns)
    draw = _reward_pictures if _is_reward(config) else _adaptation_pictures
    figures, animations, absent = draw(folder, config, rows, samples, methods)
    for name, figure in figures.items():
        if figure is not None:
            plots.save(figure, folder / name)
    for name, animation in animations.items():
        if animation is not None:
            write_atomically(folder / name, animation)
    shown = [name for name, made in (figures | animations).items() if made is not None]
    images = {name: (folder / name).read_bytes() for name in shown}
    absent = absences(config, rows, table, methods, samples) + absent
    page = folder / "report.html"
    sections = coupling_section(config, rows) + card_section(read_cards(folder)) + time_section(rows, methods)
    write_atomically(page, render(config, table, methods, images, absent, sections, columns))
    return page


def table_of(folder: str | Path) -> tuple[list[TableRow], list[Column]]:
    """The table of a run, and the columns that it has.

    Raises:
        FileNotFoundError: the folder, its ``config.json`` or its ``metrics.jsonl`` is missing.
        ValueError: one of the files cannot be read.
    """
    config, rows = _read_config(Path(folder)), read_metrics(folder)
    return _table(config, rows, _methods(config, rows))


def _is_reward(config: Mapping[str, Any]) -> bool:
    return config.get("experiment") == "reward"


def _methods(config: Mapping[str, Any], rows: Sequence[Record]) -> list[str]:
    """The methods of the configuration, then others that the log holds."""
    configured = list(config.get("methods", []))
    return [*configured, *(method for method in methods_of(rows) if method not in configured)]


def _table(
    config: Mapping[str, Any], rows: Sequence[Record], methods: Sequence[str]
) -> tuple[list[TableRow], list[Column]]:
    columns = (
        REWARD_COLUMNS
        if _is_reward(config)
        else (*COLUMNS, *TERMINAL_COLUMNS, *FEW_STEP_COLUMNS, *IMAGE_COLUMNS)
    )
    table = summarise(rows, methods, columns)
    held = set().union(*(row.cells for row in table))
    always = () if _is_reward(config) else COLUMNS
    return table, [column for column in columns if column.key in held or column in always]


_Pictures = tuple[dict[str, Figure | None], dict[str, bytes | None], list[str]]
"""Figures and animations by file name, and what is missing for them."""


def _reward_pictures(
    folder: Path,
    config: Mapping[str, Any],
    rows: Sequence[Record],
    samples: Mapping[str, np.ndarray],
    methods: Sequence[str],
) -> _Pictures:
    figures = {"pareto.png": pareto(rows, methods), "strengths.png": by_strength(samples, methods)}
    return figures, {}, []


def _adaptation_pictures(
    folder: Path,
    config: Mapping[str, Any],
    rows: Sequence[Record],
    samples: Mapping[str, np.ndarray],
    methods: Sequence[str],
) -> _Pictures:
    motion, real = read_motion(folder, methods), samples.get("real")
    weights = target_weights(rows, methods, seed=next(iter(config.get("seeds", [])), 0))
    planar = any(is_planar(array.shape[1:]) for array in samples.values())
    few = _read_samples(folder, FEW_STEP_SAMPLES)
    of_few_steps = {
        "few_steps.png": by_evaluations(rows, methods),
        "few_step_samples.png": few_step_panels(few, real, methods),
    }
    if not planar:
        figures, animations, absent = _image_pictures(config, rows, samples, methods, motion)
        return of_few_steps | figures, animations, absent
    figures = {
        "scatter.png": scatters(samples, methods),
        "moving_samples.png": moving_samples(motion.snapshots, weights, real, methods),
        "trajectories.png": path_panels(motion.paths, real, methods),
        **_curves(rows, methods),
        **of_few_steps,
    }
    animations = {"cooling.gif": cooling_animation(motion.snapshots, weights, real, methods)}
    return figures, animations, list(motion.absences(methods))


def _image_pictures(
    config: Mapping[str, Any],
    rows: Sequence[Record],
    samples: Mapping[str, np.ndarray],
    methods: Sequence[str],
    motion: Motion,
) -> _Pictures:
    classes, kind = config.get("shown_classes", []), setting(config, "samples_are")
    figures = {
        "images_by_step.png": images_by_step(motion.snapshots, samples.get("real"), methods, classes, kind),
        **_curves(rows, methods),
        "samples.png": plots.sample_grids(_as_shown(samples, kind), methods),
    }
    return figures, {}, []


def _curves(rows: Sequence[Record], methods: Sequence[str]) -> dict[str, Figure | None]:
    return {
        "convergence.png": plots.convergence(rows, methods),
        "path_length.png": plots.path_lengths(rows, methods),
        "path_kl.png": path_kls(rows, methods),
        "cooling.png": plots.cooling(rows, methods),
        "end_law.png": end_law(rows, methods),
    }


def _as_shown(samples: Mapping[str, np.ndarray], kind: str | None) -> dict[str, np.ndarray]:
    real = samples.get("real")
    if real is None:
        return dict(samples)
    return {name: as_shown(x, real, kind) if is_image_batch(x) else x for name, x in samples.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder}")
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a run folder holds its settings in config.json")
    return read_json(path)


def _read_samples(folder: Path, name: str = "samples.npz") -> dict[str, np.ndarray]:
    path = folder / name
    return read_arrays(path) if path.is_file() else {}


def absences(
    config: Mapping[str, Any],
    rows: Sequence[Record],
    table: Sequence[TableRow],
    methods: Sequence[str],
    samples: Mapping[str, np.ndarray],
) -> list[str]:
    """What the run should hold and does not, and what did not stay finite, a sentence each."""
    absent = [text for row in table if row.method in methods for text in _absences_of(config, rows, row)]
    absent += [f"No path KL: {row['reason']}" for row in rows if row["kind"] == "no path KL"]
    absent += left_out(rows)
    absent += doubts(config, rows, methods)
    absent += unconverged(rows)
    present = {row.method for row in table}
    if "base" not in present:
        absent.append("The base before fine-tuning was not evaluated.")
    if "floor" not in present:
        absent.append("There is no floor: real data were not compared with real data.")
    if not samples:
        return [*absent, "samples.npz is missing, and with it the figure of samples."]
    lacking = [name for name in ("base", *methods, "real") if name not in samples]
    if lacking:
        absent.append(f"No samples of {listing(lacking)}.")
    shapes = {array.shape[1:] for array in samples.values()}
    hidden = sorted(shape for shape in shapes if not (len(shape) in (2, 3) or is_planar(shape)))
    return [
        *absent,
        *(
            f"Samples of shape {shape} are neither images nor points in the plane: not shown."
            for shape in hidden
        ),
    ]


def _absences_of(config: Mapping[str, Any], rows: Sequence[Record], row: TableRow) -> Iterable[str]:
    if row.last_step is None:
        yield f"{row.method}: no evaluations."
        return
    steps = config.get("method_steps", {}).get(row.method, setting(config, "steps"))
    if steps is not None and row.last_step < steps:
        yield f"{row.method}: evaluated up to step {row.last_step} of {steps}."
    evaluated = runs(rows, "evaluation", row.method)
    reasons = {
        other["seed"]: other["reason"]
        for other in rows
        if other["kind"] == "diverged" and other["method"] == row.method
    }
    timed = {other["seed"] for other in rows if other["kind"] == "timing" and other["method"] == row.method}
    for seed in config.get("seeds", row.seeds):
        subject = f"{row.method}, seed {seed}"
        if seed in reasons:
            yield f"Diverged, and shown as far as it came: {reasons[seed]}."
        elif seed not in evaluated:
            yield f"{subject}: no evaluations."
        elif seed not in row.seeds:
            last = evaluated[seed][-1]["step"]
            yield (
                f"{subject}: evaluated up to step {last} of {row.last_step}; left out of the table and the "
                "curves."
            )
        elif seed not in timed:
            yield f"{subject}: no timing, so this run did not finish."
    for seed in row.seeds:
        values = [record.get(key) for record in evaluated[seed] for key in ("w2", "energy_distance")]
        if not all(math.isfinite(value) for value in values if value is not None):
            yield f"{row.method}, seed {seed}: some evaluations are not finite; the run diverged."
        elif not all(math.isfinite(record.get("path_kl", 0.0)) for record in evaluated[seed]):
            yield f"{row.method}, seed {seed}: some values of the path KL are not finite; the SDE diverged."


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m experiments.report RUN``; exit status 2 where the run cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Make the report of a fine-tuning run again, from the files of its folder.",
    )
    parser.add_argument("run", type=Path, help="the run folder, which holds config.json and metrics.jsonl")
    folder = parser.parse_args(arguments).run
    try:
        page = write_report(folder)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"report: {page}")


if __name__ == "__main__":
    main()

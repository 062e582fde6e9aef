"""The page of a report: HTML and CSS around the table, the figures and the settings of a run."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from experiments import sampling_words
from experiments.captions import CAPTIONS
from experiments.method_words import DESCRIPTIONS, FEW_STEP_NOTES, TERMINAL_NOTES
from experiments.plots import colour, family
from experiments.reward import words as reward_words
from experiments.summary import COLUMNS, NAMES, Column, TableRow
from experiments.summary_text import format_cell
from gft_jax.loading import scores_average

_STYLE = Path(__file__).with_name("page.css")

_SAMPLING = ("num_evaluations", "sampling_steps", "tolerance", "guidance")


def render(
    config: Mapping[str, Any],
    table: Sequence[TableRow],
    methods: Sequence[str],
    images: Mapping[str, bytes],
    absent: Sequence[str],
    sections: str = "",
    columns: Sequence[Column] = COLUMNS,
) -> str:
    """The page as HTML that refers to nothing outside itself.

    Args:
        config: content of ``config.json``.
        table: rows of the summary.
        methods: methods of the run; their order gives the colours.
        images: PNG and GIF files by their names; any of those that have a caption may be missing.
        absent: what the run lacks, a sentence each.
        sections: more sections, as HTML, of the coupling and of report cards.
        columns: of the table.
    """
    experiment, (source, target), shift = config.get("experiment", "run"), laws(config), shift_of(config)
    subject = f"{source} to {target}" if target else shift or setting(config, "domain")
    title = f"{experiment}: {subject}" if subject else str(experiment)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} &ndash; fine-tuning report</title>
<style>
{_STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Fine-tuning report</p>
<h1>{escape(title)}</h1>
<p class="lead">{escape(opening(config, table, methods))}</p>
</header>
{_absent(absent)}
<section>
<h2>Results</h2>
{_table(table, methods, columns)}
{_meanings(columns)}
</section>
{sections}<section>
<h2>Figures</h2>
{"".join(_figure(name, images[name], config) for name in CAPTIONS if name in images)}
</section>
<section>
<h2>How to read this</h2>
{_notes(config, methods)}
</section>
<section>
<h2>How to repeat it</h2>
{_provenance(config)}
</section>
</main>
</body>
</html>
"""


def setting(config: Mapping[str, Any], name: str) -> Any:
    """A setting by name, from the configuration or the facts next to it; None where neither has it."""
    return config.get("config", {}).get(name, config.get(name))


def laws(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Source and target of a run in the plane; twice None of another."""
    if setting(config, "domain") == "digits":
        return None, None
    return setting(config, "source"), setting(config, "target")


def shift_of(config: Mapping[str, Any]) -> str | None:
    """The shift of a run on images; None of another."""
    return None if setting(config, "domain") == "toy2d" else setting(config, "shift")


def listing(items: Sequence[Any]) -> str:
    """Items as English text; three or more consecutive integers as a range."""
    words = [str(item) for item in items]
    if len(words) > 2 and all(isinstance(item, int) for item in items) and np.all(np.diff(items) == 1):
        return f"{words[0]} to {words[-1]}"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def opening(config: Mapping[str, Any], table: Sequence[TableRow], methods: Sequence[str]) -> str:
    """Two sentences that say what was done, as far as the files tell."""
    if setting(config, "reward"):
        first = f"A flow matching model, pretrained on {setting(config, 'pretrained_on')}, was fine-tuned to raise "
        first += f"{setting(config, 'reward')}"
    else:
        first = _adaptation(config)
    seeds, steps = config.get("seeds", []), setting(config, "steps")
    trained = {row.method: row.last_step for row in table if row.method in methods and row.seeds}
    names = list(dict.fromkeys(family(name) for name in trained))
    several = len(names) > 1
    second = f"The {'methods' if several else 'method'} {listing(names)} {'were' if several else 'was'}"
    second += " trained"
    second += f" at {len(trained)} strengths in all" if len(trained) > len(names) else ""
    if steps is not None:
        up_to = "" if set(trained.values()) == {steps} else "up to "
        second += f" for {up_to}{steps} steps{' each' if len(trained) > 1 else ''}"
    second += f" with the {'seed' if len(seeds) == 1 else 'seeds'} {listing(seeds)}" if seeds else ""
    return f"{first}. {second}." if trained else f"{first}. No method has been evaluated yet."


def _adaptation(config: Mapping[str, Any]) -> str:
    base, target = (
        f"the classes {listing(classes)}" if classes else law
        for classes, law in zip(
            (setting(config, "base_classes"), setting(config, "target_classes")), laws(config), strict=True
        )
    )
    noun = setting(config, "samples_are") or "images"
    count, shift = setting(config, "num_target"), shift_of(config)
    first = "A flow matching model"
    first += f", pretrained on {base}," if base else ""
    first += f" was adapted to {noun}" if count is None else f" was adapted to {count} {noun}"
    first += f" of {target}" if target else " of a shifted distribution"
    remark = "; ".join(filter(None, (shift and f"shift: {shift}", setting(config, "shift_remark"))))
    return first + (f" ({remark})" if remark else "")


def _absent(absent: Sequence[str]) -> str:
    if not absent:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in absent)
    return f"<aside><h2>Missing or doubtful in this run</h2><ul>{items}</ul></aside>"


def _table(table: Sequence[TableRow], methods: Sequence[str], columns: Sequence[Column]) -> str:
    groups = [(name, len(list(group))) for name, group in groupby(columns, key=lambda column: column.group)]
    first = {next(c.key for c in columns if c.group == name) for name, _ in groups}
    head = '<th colspan="3"></th>' + "".join(
        f'<th class="first" colspan="{count}" scope="colgroup">{escape(name)}</th>' for name, count in groups
    )
    titles = "".join(
        f'<th class="{"first" if column.key in first else ""}" scope="col">{escape(column.title)}</th>'
        for column in columns
    )
    body = []
    for row in table:
        is_method = row.method in methods
        swatch = f'<i style="background:{colour(row.method, methods)}"></i>' if is_method else "<i></i>"
        step = "&ndash;" if row.last_step is None else row.last_step
        cells = []
        for column in columns:
            statistic = row.cells.get(column.key)
            mean, spread = format_cell(statistic, column)
            parts = [_typeset(mean) if statistic else "&ndash;"]
            parts += [f"<small>{_typeset(spread)}</small>"] if spread else []
            if statistic and statistic.n != len(row.seeds):
                parts.append(f"<small>n = {statistic.n}</small>")
            cells.append(f'<td class="{"first" if column.key in first else ""}">{"".join(parts)}</td>')
        body.append(
            f'<tr class="{"" if is_method else "reference"}"><th scope="row">{swatch}'
            f"{escape(NAMES.get(row.method, row.method))}</th><td>{len(row.seeds)}</td><td>{step}</td>"
            f"{''.join(cells)}</tr>"
        )
    counts = {len(row.seeds) for row in table if row.method in methods and row.seeds}
    spread = "One seed, so no spread: differences between methods may be chance."
    if counts - {1}:
        spread = "Mean over the seeds, ± the sample standard deviation over them (n = number of seeds)."
    return f"""<div class="scroll"><table class="results">
<thead><tr>{head}</tr>
<tr><th scope="col">method</th><th scope="col">n</th><th scope="col">step</th>{titles}</tr></thead>
<tbody>{"".join(body)}</tbody></table></div>
<p class="small">{spread}</p>"""


def _typeset(text: str) -> str:
    """Text as HTML, with minus signs where a hyphen stands for one."""
    return re.sub(r"(?<!\w)-(?=[\d ])", "&minus;", escape(text))


def _meanings(columns: Sequence[Column]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(column.title)}</th><td class="short">{_typeset(column.better)}</td>'
        f"<td>{_typeset(column.meaning)}</td></tr>"
        for column in columns
    )
    return f"""<h3>What the columns mean</h3>
<div class="scroll"><table class="text">
<thead><tr><th scope="col">column</th><th scope="col">better</th><th scope="col">meaning</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _figure(name: str, content: bytes, config: Mapping[str, Any]) -> str:
    title, text, alt = CAPTIONS[name]
    parameters = "averaged" if scores_average(config) else "raw"
    text = text.format(parameters=parameters, scale=sampling_words.scale(setting(config, "samples_are")))
    kind = name.rpartition(".")[2]
    data = base64.b64encode(content).decode("ascii")
    return f"""<figure><img src="data:image/{kind};base64,{data}" alt="{escape(alt or title)}">
<figcaption><strong>{escape(title)}.</strong> {_typeset(text)}</figcaption></figure>
"""


def _notes(config: Mapping[str, Any], methods: Sequence[str]) -> str:
    seeds = config.get("seeds", [])
    is_reward = bool(setting(config, "reward"))
    descriptions = reward_words.descriptions(methods) if is_reward else DESCRIPTIONS
    named = descriptions if is_reward else [name for name in methods if name in DESCRIPTIONS]
    known = "".join(f"<dt>{escape(name)}</dt><dd>{escape(descriptions[name])}</dd>" for name in named)
    notes = list(reward_words.NOTES) if is_reward else _adaptation_notes(config)
    if any(name.startswith("terminal") for name in methods):
        notes += TERMINAL_NOTES
    if config.get("experiment") == "few_steps":
        notes += FEW_STEP_NOTES
    if len(seeds) == 1:
        notes.append(
            "This is one seed: a calibration of the setting, not evidence for one method over another."
        )
    items = "".join(f"<li>{_typeset(note)}</li>" for note in notes)
    return f"{f'<dl>{known}</dl>' if known else ''}<ul>{items}</ul>"


def _adaptation_notes(config: Mapping[str, Any]) -> list[str]:
    of_raw = (
        "All numbers are of the raw parameters. Averaged parameters (EMA) would flatten every curve and hide what "
        "the stability columns measure."
    )
    averaged = (
        "All numbers are of the averaged parameters (EMA), by which the curves are flatter than the training is; "
        "--raw scores the raw ones."
    )
    return [
        averaged if scores_average(config) else of_raw,
        "Every evaluation, of every method and seed, starts from the same noise, so that differences are due to the "
        "parameters and not to the draw. All seeds start from one pretrained base: the spread is that of fine-tuning.",
        "The energy distance is estimated without bias, and may therefore fall a little below zero.",
        sampling_words.sampling(*(setting(config, name) for name in _SAMPLING)),
        *sampling_words.space(setting(config, "features"), setting(config, "samples_are")),
        "The floor is the distance between two disjoint sets of real data. Finite sets of the same law are about "
        "this far apart, so it is what perfect samples would score.",
        "Gradual fine-tuning regresses on w u + (1 - w) v, with u the velocity of the target path, v that of the "
        "frozen base, and w = 1 / (1 + β): temperature β = 0 is plain flow matching.",
    ]


def _provenance(config: Mapping[str, Any]) -> str:
    shown = ("command", "versions", "config", "experiment", "methods", "num_evaluations", "wall_seconds")
    seconds = config.get("wall_seconds")
    run = {"hardware": "not recorded", "started": "not recorded"}
    run |= {"wall time": "not recorded" if seconds is None else _duration(seconds)}
    run |= {key: value for key, value in config.items() if key not in shown}
    return f"""<pre><code>{escape(str(config.get("command", "not recorded")))}</code></pre>
<div class="columns">
<div>{_settings("Run", run)}{_settings("Versions", config.get("versions", {}))}</div>
<div>{_settings("Configuration", config.get("config", {}))}</div>
</div>"""


def _settings(title: str, settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in _flat(settings)
    )
    return f'<h3>{title}</h3><table class="text">{rows or "<tr><td>not recorded</td></tr>"}</table>'


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts = parts[1:]
    return " ".join(f"{number} {unit}" for number, unit in parts)

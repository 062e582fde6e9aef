"""The table of a benchmark, with the facts of the machine it was measured on."""

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.interleaved import Comparison, Outcome
from experiments.files import write_atomically

_HEAD = ("setting", "ratio of the times", "median", "quartiles", "asked", "met", "ms", "ms")


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Cores, device, versions and the load of the machine at this moment."""
    device = jax.local_devices()[0]
    facts: dict[str, Any] = {
        "device": device.device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }
    if hasattr(os, "sched_getaffinity"):
        facts["cores_used"] = len(os.sched_getaffinity(0))
    if os.environ.get("XLA_FLAGS"):
        facts["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 2)
    return facts


def write(folder: Path, name: str, title: str, facts: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Writes ratios as `write_rows` does. The two columns of times are those of numerator and denominator."""
    rows = [
        {
            "setting": outcome.setting,
            **outcome.comparison._asdict(),
            "quartiles": outcome.quartiles,
            "milliseconds": outcome.milliseconds,
            "met": outcome.met(),
        }
        for outcome in outcomes
    ]
    return write_rows(folder, name, title, facts, _HEAD, [_cells(outcome) for outcome in outcomes], rows)


def write_rows(
    folder: Path,
    name: str,
    title: str,
    facts: dict[str, Any],
    head: Sequence[str],
    cells: Sequence[Sequence[str]],
    rows: Sequence[dict[str, Any]],
) -> str:
    """Writes ``name.json`` and ``name.md`` to the folder, and returns the table.

    Args:
        folder: made if it is not there.
        name: of the files.
        title: of the table.
        facts: what `machine` returned, and more: they follow the table.
        head: names of the columns.
        cells: the rows as they are shown.
        rows: the rows for the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")
    notes = [f"{fact}: {value}" for fact, value in facts.items() if fact != "versions"]
    notes.append(", ".join(f"{package} {version}" for package, version in facts["versions"].items()))
    lines = [f"| {' | '.join(row)} |" for row in (head, *cells)]
    lines.insert(1, "|---" * len(head) + "|")
    text = "\n".join([f"# {title}", "", *lines, "", "; ".join(notes), ""])
    write_atomically(folder / f"{name}.md", text)
    return text


def _cells(outcome: Outcome) -> list[str]:
    lower, median, upper = outcome.quartiles
    first, second = outcome.milliseconds
    met = {True: "yes", False: "NO", None: ""}[outcome.met()]
    return [
        outcome.setting,
        outcome.comparison.name,
        f"{median:.3f}",
        f"{lower:.3f} - {upper:.3f}",
        _asked(outcome.comparison),
        met,
        f"{first:.3f}",
        f"{second:.3f}",
    ]


def _asked(comparison: Comparison) -> str:
    bars = (("<=", comparison.at_most), (">=", comparison.at_least))
    return ", ".join(f"{sign} {bar:g}" for sign, bar in bars if bar is not None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

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

_HEAD = "| setting | ratio of the times of a step | median | quartiles | asked | met | ms | ms |"


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
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 2)
    return facts


def markdown(title: str, facts: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The table, with the facts below it. The two columns of times are those of numerator and denominator."""
    rows = [_row(outcome) for outcome in outcomes]
    notes = [f"{name}: {value}" for name, value in facts.items() if name != "versions"]
    notes.append(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    return "\n".join(
        [f"# {title}", "", _HEAD, "|---" * _HEAD.count(" |") + "|", *rows, "", "; ".join(notes), ""]
    )


def write(folder: Path, name: str, title: str, facts: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Writes ``name.json`` and ``name.md`` to the folder, and returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
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
    write_atomically(folder / f"{name}.json", json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")
    text = markdown(title, facts, outcomes)
    write_atomically(folder / f"{name}.md", text)
    return text


def _row(outcome: Outcome) -> str:
    lower, median, upper = outcome.quartiles
    first, second = outcome.milliseconds
    met = {True: "yes", False: "NO", None: ""}[outcome.met()]
    cells = [
        outcome.setting,
        outcome.comparison.name,
        f"{median:.3f}",
        f"{lower:.3f} - {upper:.3f}",
        _asked(outcome.comparison),
        met,
        f"{first:.3f}",
        f"{second:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


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

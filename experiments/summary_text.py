"""The table of a run as text: for a terminal, in Markdown, and as files."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.files import write_atomically
from experiments.summary import COLUMNS, NAMES, Column, Statistic, TableRow


def format_cell(statistic: Statistic | None, column: Column) -> tuple[str, str]:
    """Mean and spread of a cell as text; a dash for what is absent, nothing for the spread of one seed."""
    if statistic is None:
        return "-", ""
    mean, spread = (
        "" if number is None else f"{number * column.scale:.{column.decimals}f}" for number in statistic[:2]
    )
    return mean, spread and f"± {spread}"


def render_text(table: Sequence[TableRow], columns: Sequence[Column] = COLUMNS, width: int = 110) -> str:
    """The table for a terminal, in as many blocks as ``width`` columns of text ask for."""
    names = [_shortened(NAMES.get(row.method, row.method), 28) for row in table]
    label = ["method", *names]
    printed = [
        ["seeds", *(str(len(row.seeds)) for row in table)],
        ["step", *("-" if row.last_step is None else str(row.last_step) for row in table)],
    ]
    for column in columns:
        cells = [_text_cell(row, column) for row in table]
        printed.append([column.heading, *cells])
    blocks: list[list[list[str]]] = []
    for cells in printed:
        if not blocks or sum(2 + _width(other) for other in [*blocks[-1], cells]) + _width(label) > width:
            blocks.append([])
        blocks[-1].append(cells)
    return "\n\n".join(_render_block(label, block) for block in blocks) + "\n"


def _text_cell(row: TableRow, column: Column) -> str:
    statistic = row.cells.get(column.key)
    fewer = f"(n={statistic.n})" if statistic is not None and statistic.n != len(row.seeds) else ""
    return " ".join(part for part in (*format_cell(statistic, column), fewer) if part)


def _render_block(label: list[str], block: list[list[str]]) -> str:
    lines = [
        "  ".join(
            [name.ljust(_width(label)), *(column[i].rjust(_width(column)) for column in block)]
        ).rstrip()
        for i, name in enumerate(label)
    ]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _width(column: list[str]) -> int:
    return max(map(len, column))


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def render_markdown(table: Sequence[TableRow], columns: Sequence[Column] = COLUMNS) -> str:
    """The table in Markdown, for documents; columns of which no row has a number are left out."""
    held = [column for column in columns if any(column.key in row.cells for row in table)]
    lines = [["method", *(column.title for column in held)], ["---"] * (1 + len(held))]
    for row in table:
        cells = (" ".join(format_cell(row.cells.get(column.key), column)).strip() for column in held)
        lines.append([NAMES.get(row.method, row.method), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_summary(folder: str | Path, table: Sequence[TableRow], columns: Sequence[Column] = COLUMNS) -> None:
    """Write the table to ``summary.json``, ``summary.csv`` and ``summary.md`` in a run folder.

    JSON has no number for NaN or infinity: a diverged run has the strings ``"nan"`` and ``"inf"`` there.
    """
    folder = Path(folder)
    content = [
        {
            "method": row.method,
            "seeds": row.seeds,
            "last_step": row.last_step,
            **{key: {name: _jsonable(v) for name, v in c._asdict().items()} for key, c in row.cells.items()},
        }
        for row in table
    ]
    write_atomically(folder / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    file = io.StringIO()
    writer = csv.writer(file)
    parts = ("mean", "spread", "n")
    writer.writerow(["method", "last_step", *(f"{c.key}_{part}" for c in columns for part in parts)])
    for row in table:
        cells = [row.cells.get(column.key, (None, None, 0)) for column in columns]
        writer.writerow([row.method, row.last_step, *(number for cell in cells for number in cell)])
    write_atomically(folder / "summary.csv", file.getvalue())
    write_atomically(folder / "summary.md", render_markdown(table, columns))


def _jsonable(number: float | None) -> float | str | None:
    return number if number is None or math.isfinite(number) else str(number)

"""The section of a report on where the time went, and what interrupted the runs."""

from collections.abc import Sequence
from html import escape

from experiments.loop.clock import PARTS
from experiments.summary import Record


def time_section(rows: Sequence[Record], methods: Sequence[str]) -> str:
    """The section of the page, as HTML; nothing where the log has no shares of the time."""
    body = []
    for method in methods:
        ours = [row for row in rows if row.get("method") == method]
        timings = [row for row in ours if row["kind"] == "timing" and "parts" in row]
        if not timings:
            continue
        total = max(sum(row["total"] for row in timings), 1e-9)
        steps = sum(row["steps"] for row in timings)
        each = f"{1e3 * sum(row['seconds'] for row in timings) / steps:.3g}" if steps else "&ndash;"
        shares = [100 * sum(row["parts"].get(part, 0.0) for row in timings) / total for part in PARTS]
        best = ", ".join(str(row["best_step"]) for row in ours if row["kind"] == "best") or "&ndash;"
        counts = [sum(row["kind"] == kind for row in ours) for kind in ("preempted", "skipped")]
        cells = [
            f"{total:.1f}",
            each,
            *(f"{share:.0f} %" for share in shares),
            *map(str, counts),
            best,
        ]
        line = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(method)}</th>{line}</tr>')
    if not body:
        return ""
    titles = [
        "seconds",
        "ms a step",
        *PARTS.values(),
        "ended by SIGTERM",
        "batches left out",
        "best checkpoint",
    ]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    return f"""<section>
<h2>Where the time went</h2>
<p class="small">Of all seeds, up to the end of each session or its last checkpoint. Steps and data: the work of the
device, and how long it waited for paired batches. The best checkpoint, a step for each seed, is the one with the lowest
W₂ among those that were saved; its parameters are kept beside the final ones.</p>
<div class="scroll"><table class="results"><thead><tr><th scope="col">method</th>{head}</tr></thead>
<tbody>{"".join(body)}</tbody></table></div>
</section>
"""


def left_out(rows: Sequence[Record]) -> list[str]:
    """A sentence for each run that left out batches."""
    steps: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        if row["kind"] == "skipped":
            steps.setdefault((row["method"], row["seed"]), []).append(row["step"])
    return [
        f"{method}, seed {seed}: {len(those)} batches were left out, since loss or gradient were not finite (steps "
        f"{', '.join(map(str, those[:10]))}{', ...' if len(those) > 10 else ''})."
        for (method, seed), those in steps.items()
    ]

"""Speed, as ratios of programs that run interleaved in one process; time and memory of distances.

python -m experiments.benchmarks steps      the library beside hand-written JAX, its methods beside each other
python -m experiments.benchmarks torchcfm   training beside torchcfm, on one core; needs the extra "bench"
python -m experiments.benchmarks unet       training of a U-Net beside torchcfm's, on one core; needs the extra "bench"
python -m experiments.benchmarks sampling   the ODE beside torchdiffeq and torchdyn; needs the extra "bench"
python -m experiments.benchmarks adjoint    updates of truncated adjoint matching beside the full adjoint
python -m experiments.benchmarks cheaper    reward and distance bought with cheaper updates, at equal number and time
python -m experiments.benchmarks convolutions  the adjoint of a convolutional network beside the same by hand
python -m experiments.benchmarks average    training on average velocities, also gradual, beside flow matching
python -m experiments.benchmarks pairing    time of a pairing, and how near it is to the optimal one, by rows
python -m experiments.benchmarks pot        couplings beside POT's exact solver; needs the extra "bench"
python -m experiments.benchmarks prefetching  training steps whose batches are coupled ahead, beside uncoupled ones
python -m experiments.benchmarks data       training on a folder of images beside the same in memory; images per second
python -m experiments.benchmarks overheads  what pmap on one device, checkpoints and log add to a training step
python -m experiments.benchmarks sit        SiT: operations and memory by the compiler, share of the device's rate
python -m experiments.benchmarks lora       memory of a step of low-rank adapters beside that of all parameters
python -m experiments.benchmarks distances  time and peak memory of distances between two sets of 10,000 points
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

_PACKAGES = ("gft_jax", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy")
_TORCHCFM = {"torch": "torch", "torchcfm": "torchcfm", "ot": "POT"}
_SOLVERS = {"torchdiffeq": "torchdiffeq", "torchdyn": "torchdyn"}

Which = Literal[
    "steps",
    "torchcfm",
    "unet",
    "sampling",
    "adjoint",
    "cheaper",
    "convolutions",
    "average",
    "pairing",
    "pot",
    "prefetching",
    "data",
    "overheads",
    "sit",
    "lora",
    "distances",
]


class _Request(NamedTuple):
    """What was asked for on the command line."""

    which: Which
    rounds: int | None
    widths: tuple[int, ...] | None
    out: Path
    one_core: bool
    quick: bool


class _Race(NamedTuple):
    """A measurement of ratios, at some widths of a network."""

    module: str
    """File of this folder, with ``TITLE`` and ``measure(widths, rounds)``."""
    rounds: int
    """Rounds at width 256 and above, by default."""
    widths: tuple[int, ...]
    """Widths, by default."""
    extra: dict[str, str]
    """What it needs of the extra "bench": packages by the names of their modules."""


_RACES = {
    "steps": _Race("library", 20, (64, 128, 256, 512), {}),
    "torchcfm": _Race("against_torchcfm", 20, (64, 128, 256, 512), _TORCHCFM),
    "unet": _Race("unet", 1, (32, 64), _TORCHCFM),
    "adjoint": _Race("adjoint", 10, (64, 256), {}),
    "convolutions": _Race("convolutions", 3, (16, 32), {}),
    "average": _Race("average", 10, (64, 256), {}),
    "pot": _Race("against_pot", 20, (256, 1024), {"ot": "POT"}),
    "prefetching": _Race("prefetching", 10, (256,), {}),
    "data": _Race("data", 10, (256,), {}),
    "overheads": _Race("overheads", 20, (256,), {}),
    "sampling": _Race("against_torch_solvers", 5, (64, 256), _TORCHCFM | _SOLVERS),
}


def benchmark(
    which: tyro.conf.Positional[Which],
    rounds: int | None = None,
    widths: tuple[int, ...] | None = None,
    points: int | None = None,
    out: Path = Path("runs/benchmarks"),
    one_core: bool = False,
    quick: bool = False,
) -> None:
    """Measures, prints what was found, and writes it as WHICH.md and WHICH.json (cheaper: also WHICH.png).

    Args:
        which: what is measured.
        rounds: how often each program runs at width 256 and above, 20 times by default (sampling: 5, adjoint, cheaper,
            average: 10, convolutions: 3, prefetching, data: 10, overheads: 20, pairing, sit: 5, unet: 1); at width 64
            it is four times as often.
        widths: widths of the network, by default 64 128 256 512 (sampling, adjoint, average: 64 256; cheaper: 128, and
            a single one; prefetching, data, overheads: 256; convolutions, unet, numbers of channels: 16 32, 32 64;
            pairing, pot, numbers of rows: 64 to 8192, 256 and 1024).
        points: distances: number of points of each set, 10,000 by default.
        out: folder of the table.
        one_core: keep to one core, where other programs disturb less; torchcfm and unet always do.
        quick: few rounds at the first width, or few points, to see that all of it runs; the numbers mean little.
    """
    if which == "distances":
        if (rounds, widths) != (None, None):
            raise ValueError("--rounds and --widths are of the other benchmarks: distances has --points")
        text = _distances(points, out, one_core, quick)
    else:
        if points is not None:
            raise ValueError(f"--points is of distances: {which} has --rounds and --widths")
        run = {"cheaper": _cheaper, "pairing": _pairing, "sit": _sit, "lora": _lora}.get(which, _ratios)
        text = run(_Request(which, rounds, widths, out, one_core, quick))
    print(text)
    print(f"written to {out / which}.md and .json")


def _ratios(request: _Request) -> str:
    race = _RACES[request.which]
    rounds = race.rounds if request.rounds is None else request.rounds
    widths = race.widths if request.widths is None else request.widths
    if rounds < 1 or not widths or min(widths) < 1:
        raise ValueError(f"--rounds and --widths must be positive, got {rounds} and {widths}")
    rounds, widths = (1, widths[:1]) if request.quick else (rounds, widths)
    _check_installed(race.extra)
    if request.one_core or request.which in ("torchcfm", "unet"):
        _pin_to_one_core()
    # Imported this late: JAX takes the number of its threads when it first looks at the cores it may use.
    program = importlib.import_module(f"experiments.benchmarks.{race.module}")
    from experiments.benchmarks import table
    from experiments.benchmarks.interleaved import rounds_at

    packages = (*_PACKAGES, *race.extra.values())
    facts = {"rounds": {width: rounds_at(width, rounds) for width in widths}, **table.machine(packages)}
    outcomes = program.measure(widths, rounds)
    facts["load_at_end"] = table.machine(()).get("load")
    return table.write(request.out, request.which, program.TITLE, facts, outcomes)


def _cheaper(request: _Request) -> str:
    rounds = 10 if request.rounds is None else request.rounds
    widths = (128,) if request.widths is None else request.widths
    if rounds < 1 or len(widths) != 1 or widths[0] < 1:
        raise ValueError(f"cheaper takes --rounds >= 1 and one positive width, got {rounds} and {widths}")
    if request.one_core:
        _pin_to_one_core()
    from experiments.benchmarks import cheaper, cheaper_page, table

    plan = cheaper.plan_of(widths[0], 1 if request.quick else rounds, request.quick)
    facts = table.machine(_PACKAGES)
    outcome = cheaper.measure(plan, request.out / "base")
    facts["load_at_end"] = table.machine(()).get("load")
    flags = {"--one-core": request.one_core, "--quick": request.quick}
    command = f"python -m experiments.benchmarks cheaper --widths {widths[0]} --rounds {rounds}"
    command += "".join(f" {flag}" for flag, given in flags.items() if given)
    return cheaper_page.write(request.out, request.which, plan, outcome, command, facts)


def _pairing(request: _Request) -> str:
    if request.one_core:
        _pin_to_one_core()
    from experiments.benchmarks import pairing, table

    rounds = 1 if request.quick else 5 if request.rounds is None else request.rounds
    rows = pairing.ROWS if request.widths is None else request.widths
    rows = pairing.ROWS[:1] if request.quick else rows
    if rounds < 1 or not rows or min(rows) < 2 or max(rows) > max(pairing.ROWS):
        most = max(pairing.ROWS)
        raise ValueError(
            f"pairing takes --rounds >= 1 and --widths, numbers of rows from 2 to {most}, got {rounds} and {rows}"
        )
    facts = {**pairing.facts(rounds), **table.machine((*_PACKAGES, "ott-jax", "scipy"))}
    costs = pairing.measure(rows, rounds)
    facts["load_at_end"] = table.machine(()).get("load")
    cells, found = [pairing.cells(cost) for cost in costs], [cost._asdict() for cost in costs]
    title = "Pairings in the plane, by the number of rows that are coupled at once"
    return table.write_rows(request.out, request.which, title, facts, pairing.HEAD, cells, found)


def _sit(request: _Request) -> str:
    rounds = 1 if request.quick else 5 if request.rounds is None else request.rounds
    if rounds < 1 or request.widths is not None:
        raise ValueError(f"sit takes --rounds >= 1 and no --widths, got {rounds} and {request.widths}")
    if request.one_core:
        _pin_to_one_core()
    from experiments.benchmarks import sit, table

    facts = {"rounds": rounds, **table.machine(_PACKAGES)}
    findings = list(sit.measure(rounds, request.quick))
    facts["load_at_end"] = table.machine(()).get("load")
    cells, found = [sit.cells(each) for each in findings], [each._asdict() for each in findings]
    return table.write_rows(request.out, request.which, sit.TITLE, facts, sit.HEAD, cells, found)


def _lora(request: _Request) -> str:
    if (request.rounds, request.widths, request.one_core) != (None, None, False):
        raise ValueError("lora takes none of --rounds, --widths and --one-core: nothing is timed")
    from experiments.benchmarks import lora, table

    facts, found = table.machine(_PACKAGES), list(lora.measure(request.quick))
    rows = [each._asdict() for each in found]
    return table.write_rows(
        request.out, request.which, lora.TITLE, facts, lora.HEAD, [lora.cells(each) for each in found], rows
    )


def _distances(points: int | None, out: Path, one_core: bool, quick: bool) -> str:
    num = (500 if quick else 10_000) if points is None else points
    if one_core:
        _pin_to_one_core()
    from experiments.benchmarks import distances, table

    facts = table.machine((*_PACKAGES, "ott-jax", "scipy"))
    costs = distances.measure(list(distances.DISTANCES), num)
    facts["load_at_end"] = table.machine(()).get("load")
    title = f"Distances between two sets of {num} points in the plane, each in a process of its own"
    cells, rows = [distances.cells(cost) for cost in costs], [cost._asdict() for cost in costs]
    return table.write_rows(out, "distances", title, facts, distances.HEAD, cells, rows)


def _check_installed(packages: dict[str, str]) -> None:
    missing = [package for name, package in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'{", ".join(missing)} is not installed: pip install -e ".[bench]"')


def _pin_to_one_core() -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(
            "a process is kept to one core by os.sched_setaffinity, which there is on Linux alone: run this there"
        )
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> int:
    """Runs the benchmark named on the command line; returns the exit status."""
    try:
        tyro.cli(benchmark, prog="python -m experiments.benchmarks", description=__doc__)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Speed of training steps, as ratios of programs that run interleaved in one process.

python -m experiments.benchmarks steps      the library beside hand-written JAX, its methods beside each other
python -m experiments.benchmarks torchcfm   the library beside torchcfm, on one core; needs the extra "bench"
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal

import tyro

_PACKAGES = ("gft_jax", "jax", "jaxlib", "flax", "optax", "numpy")
_TORCH = {"torch": "torch", "torchcfm": "torchcfm", "ot": "POT"}


def benchmark(
    which: tyro.conf.Positional[Literal["steps", "torchcfm"]],
    rounds: int = 20,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    out: Path = Path("runs/benchmarks"),
    one_core: bool = False,
    quick: bool = False,
) -> None:
    """Measures, prints one table, and writes it as WHICH.md and WHICH.json.

    Args:
        which: what is measured.
        rounds: how often each program runs at width 256 and above; at width 64 it is four times as often.
        widths: widths of the network.
        out: folder of the table.
        one_core: keep to one core, where other programs disturb less; torchcfm always does.
        quick: few rounds at the first width, to see that all of it runs; the ratios mean little.
    """
    if rounds < 1 or not widths or min(widths) < 1:
        raise ValueError(f"--rounds and --widths must be positive, got {rounds} and {widths}")
    rounds, widths = (1, widths[:1]) if quick else (rounds, widths)
    if which == "torchcfm":
        _check_installed()
    if one_core or which == "torchcfm":
        _pin_to_one_core()
    # Imported this late: JAX takes the number of its threads when it first looks at the cores it may use.
    if which == "torchcfm":
        from experiments.benchmarks.against_torchcfm import BATCH_SIZE, measure

        what = f"torchcfm over gft_jax: plain MLP on 2-dimensional moons, batch {BATCH_SIZE}, one core"
    else:
        from experiments.benchmarks.library import BATCH_SIZE, measure

        what = f"Training steps: plain MLP on moons, residual MLP on digits of 64 pixels, batch {BATCH_SIZE}"
    from experiments.benchmarks import table
    from experiments.benchmarks.interleaved import rounds_at

    packages = (*_PACKAGES, *_TORCH.values()) if which == "torchcfm" else _PACKAGES
    facts = {"rounds": {width: rounds_at(width, rounds) for width in widths}, **table.machine(packages)}
    outcomes = measure(widths, rounds)
    facts["load_at_end"] = table.machine(()).get("load")
    print(table.write(out, which, what, facts, outcomes))
    print(f"written to {out / which}.md and .json")


def _check_installed() -> None:
    missing = [package for name, package in _TORCH.items() if importlib.util.find_spec(name) is None]
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

"""A run that is killed and asked to end again and again comes to what it would have come to undisturbed.

    python -m experiments.soak                       # 20 SIGKILLs, 5 SIGTERMs, all on two fake CPU devices: bit for bit
    python -m experiments.soak --devices 1 2 4 8     # each session on another number of them, its state split anew

Ten to twenty minutes on two CPU cores. Results go to ``--out``: the two runs, and soak.md, the table of interruptions.
"""

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experiments.configs.digits import Digits
from experiments.configs.settings import MethodName, require
from experiments.files import write_atomically
from experiments.soak.comparison import row_errors, rows_of, state_distance
from experiments.soak.sessions import Failed, finish, fresh_lines, interrupt, plan

TOLERANCE = 1e-5
"""Of a run whose sums were taken over different numbers of devices, relative to the largest entry of a leaf."""
ROW_TOLERANCE = 1e-4
"""Of the numbers that were logged of it."""
CHUNK = 4
ROWS_BEFORE = 2
"""Floor and base."""


@dataclass(frozen=True)
class Soak:
    """Interrupt one run at random moments, and compare what it comes to with an uninterrupted one."""

    kills: int = 20
    """SIGKILLs."""
    terms: int = 5
    """SIGTERMs; at least one of them or a SIGKILL."""
    devices: tuple[int, ...] = (2,)
    """Numbers of fake CPU devices; with several each session gets another, drawn at random, and the uninterrupted run
    the first."""
    parallel: Literal["single", "pmap", "sharded"] = "sharded"
    """How the run uses its devices; sharded splits parameters over two, where there are so many."""
    methods: tuple[MethodName, ...] = ("gradual-self-paced", "plain")
    """Methods that the run trains, one after the other."""
    steps: int = 160
    """Steps of each method, a multiple of 4; at least 40."""
    hidden: int = 64
    """Width of the network; at least 64 with --parallel sharded, which leaves smaller arrays whole."""
    seed: int = 0
    """Of the random moments."""
    out: Path = Path("runs/soak")
    """An empty or new folder."""

    def check(self) -> None:
        """Refuses what cannot work.

        Raises:
            ValueError: that says what was given and what is allowed.
        """
        require(
            min(self.kills, self.terms) >= 0,
            "kills and --terms",
            (self.kills, self.terms),
            "numbers from 0 on",
        )
        require(
            self.kills + self.terms >= 1,
            "kills and --terms",
            (self.kills, self.terms),
            "at least one of both",
        )
        fits = self.steps >= 40 and self.steps % CHUNK == 0
        require(fits, "steps", self.steps, f"a multiple of {CHUNK}, at least 40")
        require(len(self.devices) > 0, "devices", self.devices, "at least one number")
        require(all(32 % number == 0 for number in self.devices), "devices", self.devices, "divisors of 32")
        several = self.parallel == "single" and max(self.devices) > 1
        require(not several, "devices", self.devices, "1, with --parallel single")
        is_split = self.parallel != "sharded" or self.hidden >= 64
        require(is_split, "hidden", self.hidden, "at least 64, with --parallel sharded")
        self.settings().check()
        if self.out.exists() and any(self.out.iterdir()):
            raise ValueError(f"{self.out} is not empty: give --out a new folder")

    def settings(self) -> Digits:
        """Of the run."""
        return Digits(
            methods=self.methods,
            steps=self.steps,
            eval_every=CHUNK,
            base_steps=100,
            hidden=self.hidden,
            depth=1,
            batch_size=32,
            num_target=64,
            sampling_steps=8,
            parallel=self.parallel,
        )


def soak(config: Soak) -> str:
    """Does all of it; the table.

    Raises:
        Failed: if a session ended otherwise than it should, or the two runs differ.
    """
    settings, started = config.settings(), time.monotonic()
    names = ("methods", "steps", "eval_every", "base_steps", "hidden", "depth", "batch_size", "num_target")
    arguments = ["digits"]
    for name in (*names, "sampling_steps", "parallel"):
        value = getattr(settings, name)
        arguments += [
            f"--{name.replace('_', '-')}",
            *map(str, value if isinstance(value, tuple) else (value,)),
        ]
    arguments += ["--checkpoint-every", str(2 * CHUNK)]

    def on(devices: int) -> list[str]:
        return [*arguments, *(["--fsdp", str(min(2, devices))] if config.parallel == "sharded" else [])]

    folders = {name: config.out.absolute() / name for name in ("uninterrupted", "interrupted")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    finish(folders["uninterrupted"], on(config.devices[0]), config.devices[0])
    # Both start from the base of the first: another number of devices would train another, by its rounding.
    (folders["interrupted"] / "runs").symlink_to(folders["uninterrupted"] / "runs")
    rows = rows_of(folders["uninterrupted"] / "run" / "metrics.jsonl")
    rng = random.Random(config.seed)
    planned = plan(rng, config.kills, config.terms, config.devices, ROWS_BEFORE + 1, len(rows) - 12)
    outcomes = []
    for number, interruption in enumerate(planned, start=1):
        is_begun = (folders["interrupted"] / "run" / "config.json").exists()
        flags = [*on(interruption.devices), *["--resume"] * is_begun]
        outcome = interrupt(folders["interrupted"], flags, interruption)
        outcomes.append(outcome)
        print(f"{number} of {len(planned)}: {interruption.signal.name}, {outcome.rows_at} rows", flush=True)
    last = rng.choice(config.devices)
    finish(folders["interrupted"], [*on(last), "--resume"], last)

    runs = {name: folder / "run" for name, folder in folders.items()}
    errors, row_distance = row_errors(rows_of(runs["interrupted"] / "metrics.jsonl"), rows)
    distance = state_distance(runs["interrupted"], runs["uninterrupted"], settings)
    is_exact = len(set(config.devices)) == 1
    allowed = (0.0, 0.0) if is_exact else (TOLERANCE, ROW_TOLERANCE)
    lines = [
        "# Soak",
        "",
        *fresh_lines(outcomes),
        "",
        f"{config.kills} SIGKILLs, {config.terms} SIGTERMs, devices {list(config.devices)}, --parallel "
        f"{config.parallel}, seed {config.seed}, {len(rows)} rows, {time.monotonic() - started:.0f} s.",
        f"Rows that are missing, too many or twice: {len(errors)}.",
        f"Largest difference of the last states and the parameters kept: {distance:.3g} (allowed {allowed[0]:g}).",
        f"Largest relative difference of a logged number: {row_distance:.3g} (allowed {allowed[1]:g}).",
        "",
    ]
    text = "\n".join(lines)
    write_atomically(config.out / "soak.md", text)
    if errors or distance > allowed[0] or row_distance > allowed[1]:
        raise Failed("\n".join([text, "The interrupted run is not the uninterrupted one.", *errors[:20]]))
    return text


def main() -> int:
    """Soaks a run; returns the exit status: 0 if it passed, 1 if not, 2 for bad settings."""
    config = tyro.cli(Soak, prog="python -m experiments.soak", description=__doc__)
    try:
        config.check()
        print(soak(config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

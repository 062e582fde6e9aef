"""Flows from eight gaussians to two moons, trained with one coupling and another: how long, how straight, how good.

    python -m experiments.couplings

About half an hour on two CPU cores with the defaults. Every run leaves a file when it ends; interrupted, the same
command does what is missing.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from experiments.configs.settings import CouplingName, require
from experiments.couplings.flow import measured, trained
from experiments.couplings.page import page
from experiments.data.eight_to_moons import moons
from experiments.files import read_arrays, read_json, write_arrays, write_atomically
from experiments.planar_figures import path_panels
from experiments.plots import save


@dataclass(frozen=True)
class Setting:
    """Which couplings, how often, how long."""

    couplings: tuple[CouplingName, ...] = ("independent", "exact")
    """Couplings to compare, in the order of the table."""
    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds of the runs of each coupling."""
    steps: int = 20_000
    """Training steps."""
    out: Path = Path("runs/couplings")
    """Folder of the numbers, one file for each run."""
    page: Path | None = None
    """Folder of couplings.md and couplings.png; default: that of the numbers."""

    def check(self) -> None:
        """Refuses settings that cannot work."""
        for name in ("couplings", "seeds"):
            values = getattr(self, name)
            require(
                len(values) > 0 and len(set(values)) == len(values), name, values, "one or more, each once"
            )
        require(min(self.seeds) >= 0, "seeds", self.seeds, "integers >= 0")
        require(self.steps >= 1, "steps", self.steps, ">= 1")


def numbers_of(setting: Setting, coupling: CouplingName, seed: int) -> dict[str, float]:
    """The numbers of a run, from its file or trained now.

    Raises:
        ValueError: if the file is of a run of other length.
    """
    file = setting.out / f"{coupling}-seed{seed}.json"
    if file.exists():
        found = read_json(file)
        if found.get("steps") != setting.steps:
            raise ValueError(
                f"{file} is of a run of {found.get('steps')} steps, this one has {setting.steps}: name another "
                "folder by --out"
            )
        return found["numbers"]
    result = measured(*trained(coupling, seed, setting.steps), seed)
    write_arrays(file.with_suffix(".npz"), {"paths": result.paths})
    write_atomically(file, json.dumps({"steps": setting.steps, "numbers": result.numbers}, indent=2) + "\n")
    return result.numbers


def compare(setting: Setting) -> Path:
    """Does the runs that are missing, and writes table and figure; returns the path of the page.

    Raises:
        ValueError: for settings that cannot work, or a folder with runs of other length.
    """
    setting.check()
    setting.out.mkdir(parents=True, exist_ok=True)
    numbers: dict[CouplingName, dict[int, dict[str, float]]] = {name: {} for name in setting.couplings}
    planned: list[tuple[CouplingName, int]] = [
        (coupling, seed) for seed in setting.seeds for coupling in setting.couplings
    ]
    with tqdm(planned, desc="couplings", unit="run") as bar:
        for coupling, seed in bar:
            bar.set_postfix_str(f"{coupling}, seed {seed}")
            numbers[coupling][seed] = numbers_of(setting, coupling, seed)
    first = setting.seeds[0]
    paths = {
        coupling: read_arrays(setting.out / f"{coupling}-seed{first}.npz")["paths"]
        for coupling in setting.couplings
    }
    folder = setting.page or setting.out
    folder.mkdir(parents=True, exist_ok=True)
    figure = path_panels(paths, moons(np.random.default_rng(0), 1000), setting.couplings)
    assert figure is not None, "there is a coupling"
    save(figure, folder / "couplings.png")
    command = f"python -m experiments.couplings --couplings {' '.join(setting.couplings)}"
    command += f" --seeds {' '.join(map(str, setting.seeds))} --steps {setting.steps}"
    file = folder / "couplings.md"
    write_atomically(file, page(numbers, command, setting.steps, "couplings.png"))
    return file


def main() -> int:
    """Compares the couplings named on the command line; returns the exit status."""
    setting = tyro.cli(Setting, prog="python -m experiments.couplings", description=__doc__)
    try:
        print(f"page: {compare(setting)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command does what is missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

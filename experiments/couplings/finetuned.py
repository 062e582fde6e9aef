"""One base of the plane and one of digits, fine-tuned gradually with one coupling and another.

    python -m experiments.couplings finetuned

Forty minutes on one busy CPU core with the defaults.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from experiments.configs.domains import Domain
from experiments.couplings.comparison import Comparison, Run, finish
from experiments.couplings.finetuned_figure import figure
from experiments.couplings.finetuned_flow import STREAMS, FineTuning, StreamName
from experiments.couplings.finetuned_page import Numbers, page
from experiments.files import write_atomically
from experiments.plots import save


@dataclass(frozen=True)
class Finetuned(Comparison):
    """A flow of 8 gaussians to moons, and one of the digits 0-4 to 5-9, by gradual fine-tuning."""

    couplings: tuple[StreamName, ...] = tuple(STREAMS)
    """Couplings to compare, in the order of the table. exact-of-1024 pairs 1024 rows at once, those of several
    batches; semi-discrete chooses out of all the data; the others pair a batch."""
    domains: tuple[Domain, ...] = ("toy2d", "digits")
    """Domains to compare them on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1500
    out: Path = Path("runs/couplings/finetuned")

    def check(self) -> None:
        """Refuses settings that cannot work."""
        self.require_some("couplings")
        self.require_some("domains")
        super().check()

    def write(self) -> Path:
        """Does the runs that are missing, and writes page and figure; returns the path of the page."""
        made = functools.cache(lambda domain: FineTuning(domain, self.steps, self.out / "base"))
        facts = {"steps": self.steps}
        planned: dict[str, Run] = {}
        for domain in self.domains:
            planned[f"{domain}-base"] = Run(
                facts, functools.partial(lambda domain: made(domain).base(), domain)
            )
            for seed in self.seeds:
                for name in self.couplings:
                    run = functools.partial(lambda domain, *run: made(domain).run(*run), domain, name, seed)
                    planned[f"{domain}-{name}-seed{seed}"] = Run(facts, run)
        self.page_folder.mkdir(parents=True, exist_ok=True)  # before the runs, lest it cannot be
        found = finish(self.out, planned)
        numbers: Numbers = {
            domain: {
                name: [found[f"{domain}-{name}-seed{seed}"] for seed in self.seeds] for name in self.couplings
            }
            for domain in self.domains
        }
        bases: dict[Domain, dict[str, float]] = {domain: found[f"{domain}-base"] for domain in self.domains}
        save(figure(numbers, bases), self.page_folder / "couplings_finetuned.png")
        command = f"python -m experiments.couplings finetuned --couplings {' '.join(self.couplings)}"
        command += f" --domains {' '.join(self.domains)}"
        command += f" --seeds {' '.join(map(str, self.seeds))} --steps {self.steps}"
        file = self.page_folder / "couplings_finetuned.md"
        write_atomically(file, page(numbers, bases, command, self.steps, "couplings_finetuned.png"))
        return file

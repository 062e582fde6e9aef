"""Which runs a study consists of."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.configs.digits import Digits
from experiments.configs.settings import MethodName, require

PartName = Literal["controls", "coupling", "shifts", "rates"]

CONTROLS: tuple[MethodName, ...] = (
    "plain",
    "gradual-linear",
    "gradual-self-paced",
    "gradual-constant",
    "plain-warmup",
    "l2-sp",
    "prior-preservation",
    "distillation",
    "diff-tuning",
    "interpolated",
    "from-scratch",
)
SCHEDULES: tuple[MethodName, ...] = (
    "gradual-self-paced",
    "gradual-linear",
    "gradual-fast",
    "gradual-cosine",
    "gradual-temperature",
)
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Study:
    """All runs of the study on digits; a run is one method on one seed."""

    parts: tuple[PartName, ...] = ("controls", "coupling", "rates", "shifts")
    """controls: all methods against plain fine-tuning. coupling: exact optimal transport. shifts: rotation,
    inversion, 16 and 64 images. rates: self-paced and hand-set cooling over learning rates."""
    num_seeds: int = 10
    """Seeds of controls and coupling."""
    few_seeds: int = 3
    """Seeds of shifts and rates."""
    run: Digits = field(default_factory=Digits)
    """Settings of every run, except those that a part varies."""
    out: Path = Path("runs/study/digits")
    """Folder of the study."""
    resume: bool = False
    """Continue an interrupted study."""

    def check(self) -> None:
        """Refuses settings that cannot work, before anything is started.

        Raises:
            ValueError: that says what was given and what is allowed.
        """
        require(len(self.parts) > 0, "parts", self.parts, "at least one part")
        for name in ("num_seeds", "few_seeds"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.out.exists() and any(self.out.iterdir()) and not self.resume:
            raise ValueError(f"{self.out} is not empty: add --resume to continue, or give another --out")


class Group(NamedTuple):
    """Runs that share everything but method and seed, in one run folder."""

    part: PartName
    config: Digits


def groups(study: Study) -> list[Group]:
    """All groups of a study, in the order in which they run."""

    def group(
        part: PartName, name: str, seeds: int, methods: tuple[MethodName, ...], **changes: object
    ) -> Group:
        config = dataclasses.replace(
            study.run,
            methods=methods,
            seeds=tuple(range(seeds)),
            out=study.out / part / name,
            **changes,
        )
        resume = (study.out / part / name / "config.json").exists()
        return Group(part, dataclasses.replace(config, resume=resume))

    main: tuple[MethodName, ...] = ("plain", "gradual-linear", "gradual-self-paced")
    many, few = study.num_seeds, study.few_seeds
    parts: dict[PartName, Callable[[], list[Group]]] = {
        "controls": lambda: [group("controls", "all", many, CONTROLS)],
        "coupling": lambda: [group("coupling", "exact", many, main[:2], coupling="exact")],
        "shifts": lambda: [
            group("shifts", "rotation", few, main, shift="rotation"),
            group("shifts", "inversion", few, main, shift="inversion"),
            group("shifts", "images-16", few, main, num_target=16),
            group("shifts", "images-64", few, main, num_target=64),
        ],
        "rates": lambda: [group("rates", f"{rate:g}", few, SCHEDULES, learning_rate=rate) for rate in RATES],
    }
    return [group for part in study.parts for group in parts[part]()]

"""Which runs a study consists of."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.configs.digits import Digits
from experiments.configs.settings import Controls, MethodName, require

PartName = Literal["controls", "strengths", "coupling", "shifts", "rates"]

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
_SET_BY_THE_STUDY = (
    "methods",
    "seeds",
    "shift",
    "num_target",
    "coupling",
    "learning_rate",
    "out",
    "resume",
)
"""Settings of a run that the parts of the study vary, or that the study has its own of."""


@dataclass(frozen=True)
class Study:
    """All runs of the study on digits; a run is one method on one seed."""

    parts: tuple[PartName, ...] = ("controls", "strengths", "coupling", "rates", "shifts")
    """controls: all methods against plain fine-tuning. strengths: some of them with other settings. coupling: exact
    optimal transport. shifts: rotation, inversion, 16 and 64 images. rates: self-paced and hand-set cooling over
    learning rates."""
    num_seeds: int = 10
    """Seeds of controls, strengths and coupling."""
    few_seeds: int = 2
    """Seeds of shifts and rates; six or more give intervals there."""
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
        require(0 < len(self.parts) == len(set(self.parts)), "parts", self.parts, "at least one, each once")
        defaults = Digits()
        for name in _SET_BY_THE_STUDY:
            value = getattr(self.run, name)
            require(value == getattr(defaults, name), f"run.{name}", value, "left to the study")
        for name in ("num_seeds", "few_seeds"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.out.exists() and any(self.out.iterdir()) and not self.resume:
            raise ValueError(f"{self.out} is not empty: add --resume to continue, or give another --out")
        if self.resume and not self.out.exists():
            raise ValueError(
                f"nothing to resume: there is no {self.out}; leave --resume out to start a study there"
            )


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

    def controls(**changes: float) -> Controls:
        return dataclasses.replace(study.run.controls, **changes)

    main: tuple[MethodName, ...] = ("plain", "gradual-linear", "gradual-self-paced")
    many, few = study.num_seeds, study.few_seeds
    parts: dict[PartName, Callable[[], list[Group]]] = {
        "controls": lambda: [group("controls", "all", many, CONTROLS)],
        "strengths": lambda: [
            group("strengths", "plain-geometric", many, ("plain-geometric",)),
            *(
                group("strengths", f"l2-sp-{strength:g}", many, ("l2-sp",), controls=controls(l2_sp=strength))
                for strength in (1.0, 10.0)
            ),
        ],
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

"""Where rows of the log go besides metrics.jsonl: TensorBoard, Weights & Biases."""

import importlib
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from experiments.files import read_json

LogName = Literal["tensorboard", "wandb"]

_PACKAGES: dict[LogName, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", 'pip install -e ".[tensorboard]"'),
    "wandb": ("wandb", "pip install wandb"),
}
"""The module of each, and how it is installed."""


class Sink(Protocol):
    """Takes the rows of a run."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes a row, if it has a step."""
        ...

    def rewind(self, method: str, seed: int, step: int) -> None:
        """Is told that a method goes on after a step; what was logged beyond it will come again."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


def check_installed(names: Sequence[LogName]) -> None:
    """Refuses sinks whose package is not there.

    Raises:
        ValueError: that says how it is installed.
    """
    for name in names:
        module, command = _PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"--log {name} needs {module}, which is not installed: {command}")


def sinks_of(names: Sequence[LogName], run: Path) -> list[Sink]:
    """The sinks of these names, for the run of a folder."""
    made = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
    return [made[name](run) for name in names]


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if key not in ("seed", "step") and isinstance(value, int | float) and math.isfinite(value):
            yield f"{row['kind']}/{key}", float(value)


def _of(row: Mapping[str, Any]) -> tuple[str, int] | None:
    """Method and seed of a row with a step; None of another."""
    return (row["method"], row["seed"]) if "step" in row and "method" in row else None


class _TensorBoard:
    """One folder RUN/tensorboard/METHOD-seedN for each method and seed, which TensorBoard shows side by side."""

    def __init__(self, run: Path):
        self._folder = run / "tensorboard"
        self._writers: dict[tuple[str, int], Any] = {}

    def log(self, row: Mapping[str, Any]) -> None:
        of = _of(row)
        if of is not None:
            writer = self._writers[of] if of in self._writers else self._open(*of, 0)
            for name, value in _numbers(row):
                writer.add_scalar(name, value, row["step"])
            writer.flush()

    def rewind(self, method: str, seed: int, step: int) -> None:
        # TensorBoard drops the events of earlier files from this step on.
        self._open(method, seed, step + 1)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _open(self, method: str, seed: int, first_step: int) -> Any:
        if (method, seed) in self._writers:
            self._writers[method, seed].close()
        tensorboard = importlib.import_module("tensorboardX")
        folder = str(self._folder / f"{method}-seed{seed}")
        writer = tensorboard.SummaryWriter(
            folder,
            purge_step=first_step or None,
            # Two files of one second would have one name otherwise.
            filename_suffix=f".from-step-{first_step}",
        )
        self._writers[method, seed] = writer
        return writer


class _WeightsAndBiases:
    """One run of Weights & Biases for each method and seed, in a group of the name of the run folder.

    It is continued where this run is; of steps that are trained again it keeps what came first.
    """

    def __init__(self, run: Path):
        self._run = run
        self._started = re.sub(r"\W", "", read_json(run / "config.json")["started"])
        self._runs: dict[tuple[str, int], Any] = {}

    def log(self, row: Mapping[str, Any]) -> None:
        of = _of(row)
        if of is not None:
            if of not in self._runs:
                self._runs[of] = self._open(*of)
            self._runs[of].log(dict(_numbers(row)), step=row["step"])

    def rewind(self, method: str, seed: int, step: int) -> None:
        pass

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()

    def _open(self, method: str, seed: int) -> Any:
        wandb = importlib.import_module("wandb")
        name, group = f"{method}-seed{seed}", f"{self._run.parent.name}-{self._run.name}"
        return wandb.init(
            project="gft_jax",
            group=group,
            name=name,
            # Folders of other places have the same names.
            id=f"{group}-{name}-{self._started}",
            resume="allow",
            reinit="create_new",
            dir=str(self._run),
        )

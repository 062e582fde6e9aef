"""Where a run keeps parameters, and what its ``config.json`` says of them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

CheckpointName = Literal["final", "best"]


def params_folder(
    run: str | os.PathLike[str],
    method: str,
    seed: int | None = None,
    averaged: bool = False,
    checkpoint: CheckpointName = "final",
) -> Path:
    """Where a run keeps parameters of a method; of the base, which has no seed, in RUN/params/base.

    Args:
        run: folder of the run.
        method: its name.
        seed: None of the base.
        averaged: whether the averaged ones are meant.
        checkpoint: those at the end; or those of the best of the checkpoints, which are kept once, raw or averaged as
            the run scores them (`scores_average`).

    Raises:
        ValueError: for the averaged parameters of the best checkpoint, which have no folder beside the one.
    """
    if averaged and checkpoint == "best":
        raise ValueError(
            "the best checkpoint has one folder, of the parameters that the run scores: ask for it without averaged"
        )
    name = method if seed is None else f"{method}-seed{seed}"
    suffix = "-averaged" if averaged else "-best" if checkpoint == "best" else ""
    return Path(run).absolute() / "params" / (name + suffix)


def scores_average(config: Mapping[str, Any]) -> bool:
    """Whether a run with this config.json scores its averaged parameters, and chooses the best checkpoint by them."""
    return bool(config.get("scores_average", False))


def check_velocity(run: str | os.PathLike[str]) -> None:
    """Refuses a folder whose network is known to predict something else than a velocity in flow time.

    Raises:
        ValueError: if its config.json says that it predicts something else.
    """
    path = Path(run) / "config.json"
    predicts = json.loads(path.read_text()).get("predicts", "velocity") if path.is_file() else "velocity"
    if predicts != "velocity":
        raise ValueError(
            f"the network in {run} predicts {predicts}, and a velocity in flow time is needed: convert it in your own "
            "code by gft_jax.drifts.from_convention"
        )

"""What a run in the plane keeps for its pictures: samples along the training, and paths from noise to samples.

``RUN/snapshots/METHOD/STEP.npz`` holds ``samples`` ``[num, 2]`` of one evaluation of the first seed, and
``RUN/trajectories.npz``, for the base and every method, the paths ``[num_steps + 1, num, 2]`` of the same noise.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import gft_jax as gft
from experiments.files import read_arrays, write_arrays
from experiments.loop import Watch
from gft_jax.types import Drift, Params

NUM_POINTS = 500
"""Samples kept of an evaluation, the first ones: of the same noise at every step and for every method."""
NUM_PATHS = 60
PATH_SEED = 20_260_714


class Motion(NamedTuple):
    """What a run folder holds of moving samples."""

    snapshots: dict[str, dict[int, np.ndarray]]
    """By method and training step ``[num, 2]``; a method without any has no entry."""
    paths: dict[str, np.ndarray]
    """By method, and for ``"base"``, ``[num_steps + 1, num, 2]``."""

    def absences(self, methods: Sequence[str]) -> Iterable[str]:
        """What is missing, a sentence each."""
        for method in methods:
            if method not in self.snapshots:
                yield f"{method}: no samples along the training."
        lacking = [name for name in ("base", *methods) if name not in self.paths]
        if lacking:
            yield f"No paths of {', '.join(lacking)}."


def is_planar(event: Sequence[int]) -> bool:
    """Whether samples of this shape are points in the plane."""
    return tuple(event) == (2,)


def snapshot_keeper(run: Path, method: str) -> Watch:
    """Keeps the first of the samples of every evaluation, and adds no scores.

    A step that is trained again, after an interruption, writes the same file again.
    """
    folder = run / "snapshots" / method
    folder.mkdir(parents=True, exist_ok=True)

    def keep(step: int, samples: np.ndarray) -> dict[str, float]:
        write_arrays(folder / f"{step:06d}.npz", {"samples": samples[:NUM_POINTS]})
        return {}

    return keep


def write_paths(run: Path, flows: Mapping[str, tuple[Drift, Params]], num_steps: int) -> None:
    """Writes ``trajectories.npz``: Euler's paths from the same noise for all drifts, by their names."""
    noise = jax.random.normal(jax.random.key(PATH_SEED), (NUM_PATHS, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def path(drift: Drift, params: Params) -> Any:
        return gft.sampling.sample_ode(drift, params, noise, num_steps=num_steps, save_steps=True).trajectory

    write_arrays(run / "trajectories.npz", {name: np.asarray(path(*flow)) for name, flow in flows.items()})


def read_motion(run: Path, methods: Sequence[str]) -> Motion:
    """What there is of snapshots and paths; nothing of a run whose samples are not in the plane.

    Raises:
        ValueError: a file cannot be read.
    """
    snapshots = {}
    for method in methods:
        found = {int(path.stem): path for path in (run / "snapshots" / method).glob("[0-9]*.npz")}
        if found:
            snapshots[method] = {step: read_arrays(found[step])["samples"] for step in sorted(found)}
    paths = run / "trajectories.npz"
    return Motion(snapshots, read_arrays(paths) if paths.is_file() else {})

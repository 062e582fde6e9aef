"""Draws samples from a finished run.

python -m experiments.sample runs/digits/001 --method plain --num-samples 100
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import diffrax
import jax
import numpy as np
import tyro

import gft_jax as gft
from experiments import plots
from experiments.files import read_json
from experiments.images.figures import as_shown
from experiments.planar import is_planar
from experiments.planar_figures import scatters
from gft_jax.loading import Loaded, check_velocity, described_model

SOLVERS = {"euler": diffrax.Euler, "midpoint": diffrax.Midpoint, "heun": diffrax.Heun, "tsit5": diffrax.Tsit5}
NUM_STEPS = 100
"""Of a solver, by default; of an average velocity one."""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a finished run; writes an array and, of images or points in the plane, a picture."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    method: str | None = None
    """One of the run's methods, or base; default its first method."""
    seed: int | None = None
    """One of the run's seeds; default its first."""
    averaged: bool = False
    """Use the averaged parameters. By default those that the run scores: of images averaged, else raw."""
    raw: bool = False
    """Use the raw parameters."""
    target_weight: float = 1.0
    """Dial between the base (0) and the fine-tuned model (1): the drift is a blend of the two. Values outside
    [0, 1] extrapolate."""
    label: int | None = None
    """Number of the class to draw, of a network that knows classes; by default the samples go through all of them."""
    guidance: float = 1.0
    """Scale of classifier-free guidance towards the class; 1 for none, 0 for samples without a class."""
    num_samples: int = 64
    """Number of samples."""
    sample_seed: int = 0
    """Seed of the noise."""
    solver: Literal["euler", "midpoint", "heun", "tsit5", "average"] = "euler"
    """Solver of the sampling ODE; average: steps of the average velocity, of methods that have one."""
    num_steps: int | None = None
    """Equal steps; default 100 of a solver, and one of the average velocity."""
    out: Path | None = None
    """Folder of the results; default one below RUN/samples whose name holds the settings."""


def main() -> int:
    """Draws the samples; returns the exit status."""
    config = tyro.cli(Sample, prog="python -m experiments.sample", description=__doc__)
    try:
        draw(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(config: Sample) -> Path:
    """Writes the samples, and returns the folder they are in.

    Raises:
        ValueError: if the run has no such method or seed, its network predicts no velocity, or a number is out of
            range; for steps of an average velocity that the method does not have, blended or guided.
    """
    if config.num_samples < 1:
        raise ValueError(f"--num-samples is {config.num_samples}; allowed is at least 1")
    if not np.isfinite(config.target_weight):
        raise ValueError(f"--target-weight is {config.target_weight}; allowed is a finite number")
    if config.method == "base" and (config.averaged or config.raw or config.target_weight != 1.0):
        raise ValueError(
            "--averaged, --raw and --target-weight are for fine-tuned methods; the base has none of them"
        )
    averaged = chosen_average(config.averaged, config.raw)
    check_velocity(config.run)
    loaded = gft.load(config.run, config.method, config.seed, averaged=averaged)
    _check_average(config, loaded)
    noise = jax.random.normal(jax.random.key(config.sample_seed), (config.num_samples, *loaded.event_shape))
    drift, params, labels = loaded.drift, loaded.params, _labels(config)
    if config.target_weight != 1.0:
        drift = gft.drifts.blend(drift)
        params = gft.drifts.BlendParams(loaded.base_params, loaded.params, config.target_weight)
    if config.guidance != 1.0:
        drift, params = gft.drifts.guide(drift, None), gft.drifts.GuidanceParams(params, config.guidance)
    num_steps = _num_steps(config)
    if config.solver == "average":
        average: Any = loaded.average
        result = gft.sampling.sample_average(average, params, noise, cond=labels, num_steps=num_steps)
    else:
        result = gft.sampling.sample_ode(
            drift, params, noise, cond=labels, num_steps=num_steps, solver=SOLVERS[config.solver]()
        )
    samples = np.asarray(result.x)
    if not result.succeeded:
        raise ValueError("the sampler diverged: take more --num-steps, or a --target-weight in [0, 1]")
    folder = config.out or config.run / "samples" / _folder_name(config, loaded)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "samples.npy", samples)
    print(
        f"{len(samples)} samples, {int(result.num_evaluations)} evaluations of the "
        f"{'average velocity' if config.solver == 'average' else 'drift'}: {folder / 'samples.npy'}"
    )
    side = int(np.ceil(np.sqrt(len(samples))))
    shown = {loaded.method: as_shown(samples, samples, _kind(config.run))}, [loaded.method]
    picture = scatters(*shown) if is_planar(loaded.event_shape) else plots.sample_grids(*shown, side)
    if picture is not None:
        plots.save(picture, folder / "samples.png")
        print(f"picture: {folder / 'samples.png'}")
    return folder


def chosen_average(averaged: bool, raw: bool) -> bool | None:
    """What ``--averaged`` and ``--raw`` ask for; None where neither is given.

    Raises:
        ValueError: if both are.
    """
    if averaged and raw:
        raise ValueError("--averaged and --raw exclude each other: give one of them, or none")
    return averaged if averaged or raw else None


def _check_average(config: Sample, loaded: Loaded) -> None:
    """Refuses an average velocity where there is none, or where another than that of the method would be needed.

    Raises:
        ValueError: saying what is possible.
    """
    if config.solver != "average":
        return
    if loaded.average is None:
        have = described_model(config.run).two_time_methods
        raise ValueError(
            f"--solver average is for methods with an average velocity, and {loaded.method} of {config.run} has none: "
            + (f"give --method, one of {', '.join(have)}" if have else "give another solver")
        )
    if config.target_weight != 1.0 or config.guidance != 1.0:
        raise ValueError(
            "--target-weight and --guidance change the velocity, whose average along the new flow nothing has learned: "
            "leave them out, or give another solver than average"
        )


def _num_steps(config: Sample) -> int:
    if config.num_steps is not None:
        return config.num_steps
    return 1 if config.solver == "average" else NUM_STEPS


def _labels(config: Sample) -> np.ndarray | None:
    """Class of each sample; None of a network without classes.

    Raises:
        ValueError: for a class that the network does not know, or guidance or a class where it knows none.
    """
    num_classes = getattr(described_model(config.run).module, "num_classes", None)
    if num_classes is None:
        if config.label is not None or config.guidance != 1.0:
            raise ValueError(
                "--label and --guidance are for networks that know classes; that of this run does not"
            )
        return None
    if config.label is not None and not 0 <= config.label < num_classes:
        raise ValueError(f"--label is {config.label}; allowed is 0 to {num_classes - 1}")
    if not np.isfinite(config.guidance):
        raise ValueError(f"--guidance is {config.guidance}; allowed is a finite number")
    every = np.arange(config.num_samples) % num_classes if config.label is None else config.label
    return np.broadcast_to(every, config.num_samples).astype(np.int32)


def _kind(run: Path) -> str | None:
    """What a run on images says of its samples, images or latents; None of others, and of a model without a run."""
    path = run / "config.json"
    return read_json(path).get("samples_are") if path.is_file() else None


def _folder_name(config: Sample, loaded: Loaded) -> str:
    """Draws with other settings go to other folders, so that none writes over another."""
    seed = "" if config.seed is None else f"-seed{config.seed}"
    averaged = "-averaged" if loaded.averaged else ""
    weight = "" if config.target_weight == 1.0 else f"-weight{config.target_weight:g}"
    label = "" if config.label is None else f"-class{config.label}"
    guidance = "" if config.guidance == 1.0 else f"-guidance{config.guidance:g}"
    sampler = f"{config.solver}{_num_steps(config)}-{config.num_samples}-noise{config.sample_seed}"
    return f"{loaded.method}{seed}{averaged}{weight}{label}{guidance}-{sampler}"


if __name__ == "__main__":
    sys.exit(main())

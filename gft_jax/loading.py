"""Finished runs: what a run folder says of its model, and how a notebook gets it back."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from gft_jax import networks
from gft_jax.checkpoints import has_params, load_params
from gft_jax.drifts import from_linen
from gft_jax.types import Drift, Params

MODEL_FILE = "model.json"

CheckpointName = Literal["final", "best"]


class Loaded(NamedTuple):
    """A drift with its parameters."""

    drift: Drift
    """``drift(params, t, x, cond=None)``."""
    params: Params
    """Parameters of the method that was asked for."""
    base_params: Params
    """Parameters of the pretrained model that the run started from."""
    event_shape: tuple[int, ...]
    """Shape of one sample."""
    method: str
    """Name of the method."""


def describe_model(run: str | os.PathLike[str], module: linen.Module, event_shape: tuple[int, ...]) -> None:
    """Writes RUN/model.json: a network of `gft_jax.networks`, its settings, and the shape of its samples.

    Raises:
        ValueError: if the network is not one of the library's, which alone can be made again by name.
    """
    name = type(module).__name__
    if getattr(networks, name, None) is not type(module):
        raise ValueError(
            f"{name} is not a network of gft_jax.networks; keep your own module beside its parameters"
        )
    settings = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name", "param_dtype")
    }
    model = {"network": name, "settings": settings, "event_shape": list(event_shape)}
    path = Path(run) / MODEL_FILE
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(model, indent=2, default=dict) + "\n")  # Flax freezes mappings
    os.replace(partial, path)


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
        checkpoint: those at the end, or of the best of the checkpoints, which was chosen by the raw parameters.

    Raises:
        ValueError: for the averaged parameters of the best checkpoint.
    """
    if averaged and checkpoint == "best":
        raise ValueError(
            "the best checkpoint was chosen by its raw parameters: ask for it, or for averaged ones, not for both"
        )
    name = method if seed is None else f"{method}-seed{seed}"
    suffix = "-averaged" if averaged else "-best" if checkpoint == "best" else ""
    return Path(run).absolute() / "params" / (name + suffix)


def load(
    run: str | os.PathLike[str],
    method: str | None = None,
    seed: int | None = None,
    *,
    averaged: bool = False,
    checkpoint: CheckpointName = "final",
) -> Loaded:
    """Drift and parameters of a finished run.

    Args:
        run: folder of the run.
        method: one of the run's methods, or "base"; default the first of its configuration.
        seed: one of the run's seeds; default the first.
        averaged: whether to load the averaged parameters instead of the raw ones.
        checkpoint: the raw parameters at the end, or those of the best checkpoint of the run. It is picked with
            hindsight, by the very samples that score it, so what it scores on them is flattered.

    Raises:
        ValueError: if there is no such run, method or seed, or it has not finished; says what there is. For averaged
            parameters of the best checkpoint.
    """
    run = Path(run)
    for file in (MODEL_FILE, "config.json"):
        if not (run / file).is_file():
            raise ValueError(f"{run} is not the folder of a run: it has no {file}")
    model = json.loads((run / MODEL_FILE).read_text())
    config = json.loads((run / "config.json").read_text())
    name: str = config["methods"][0] if method is None else method
    if name == "base":
        folder = params_folder(run, name)
    else:
        folder = params_folder(run, name, config["seeds"][0] if seed is None else seed, averaged, checkpoint)
    if not has_params(folder):
        there = sorted(path.name for path in (run / "params").glob("[!.]*") if has_params(path))
        raise ValueError(
            f"{run} has no finished parameters {folder.name}; there are: {', '.join(there) or 'none'}"
        )
    module = getattr(networks, model["network"])(**model["settings"])
    event_shape = tuple(model["event_shape"])
    like = jax.eval_shape(lambda: init_params(module, jax.random.key(0), event_shape))
    base_params = load_params(params_folder(run, "base"), like)
    return Loaded(from_linen(module), load_params(folder, like), base_params, event_shape, name)


def init_params(module: linen.Module, key: Any, event_shape: tuple[int, ...]) -> Params:
    """Random parameters of a drift network for samples of a shape."""
    widths, cond = getattr(module, "cond_features", None), None
    if widths is not None:
        null = networks.null_condition(getattr(module, "num_classes", None), widths)
        cond = jax.tree.map(lambda row: jnp.asarray(row)[None], null)
    return jax.jit(module.init)(key, jnp.zeros(1), jnp.zeros((1, *event_shape)), cond)["params"]

"""Finished runs and kept models as drifts with their parameters."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import linen

from gft_jax import networks
from gft_jax.checkpoints import has_params, load_params
from gft_jax.drifts import from_linen, instantaneous, two_times
from gft_jax.loading.model_files import described_model
from gft_jax.loading.network_params import init_params
from gft_jax.loading.run_files import CheckpointName, params_folder, scores_average
from gft_jax.networks.lora import LowRank
from gft_jax.types import Drift, Params, TwoTimeDrift


class Loaded(NamedTuple):
    """A drift with its parameters."""

    drift: Drift
    """``drift(params, t, x, cond=None)``."""
    params: Params
    """Parameters of the method that was asked for."""
    base_params: Params
    """Parameters of the pretrained model that the run started from, as the drift takes them: of a method that gave it
    a second time with one that has no effect."""
    event_shape: tuple[int, ...]
    """Shape of one sample."""
    method: str
    """Name of the method."""
    lora: LowRank | None = None
    """The low-rank adaptation of a run that has one: ``params`` of its methods are then `LoRAParams`, and
    ``lora.merge(*params)`` those of the network alone."""
    averaged: bool = False
    """Whether ``params`` are averaged ones."""
    average: TwoTimeDrift | None = None
    """The average velocity ``average(params, t, s, x, cond=None)`` of a method that has one, for
    `gft_jax.sampling.sample_average`. The drift is then its velocity, ``average`` at s = t."""


def load(
    run: str | os.PathLike[str],
    method: str | None = None,
    seed: int | None = None,
    *,
    averaged: bool | None = None,
    checkpoint: CheckpointName = "final",
) -> Loaded:
    """Drift and parameters of a finished run, or of a model that `save_model` or an import kept.

    The drift is the network as it is; of one with two times its velocity, and beside it there is the average velocity.
    Where weights that predict noise were imported, it is no velocity before `gft_jax.drifts.from_convention`;
    `check_velocity` tells.

    Args:
        run: folder of the run, or of the model.
        method: one of the run's methods, or "base"; default the first of its configuration. A model has its base alone.
        seed: one of the run's seeds; default the first.
        averaged: whether to load the averaged parameters or the raw ones; default those that the run scores, to which
            its report and its log belong: averaged in runs on images unless they were told ``--raw``, else raw.
        checkpoint: the parameters at the end, or those of the best checkpoint of the run. It is picked with
            hindsight, by the very samples that score it, so what it scores on them is flattered.

    Raises:
        ValueError: if there is no such run, method or seed, or it has not finished; says what there is. For the best
            checkpoint's averaged parameters in a run that scores raw ones, and the other way round.
    """
    run = Path(run)
    described = described_model(run)
    event_shape, lora = described.event_shape, described.lora
    config: dict[str, Any] = {"methods": ["base"]}
    if (run / "config.json").is_file():
        config = json.loads((run / "config.json").read_text())
    elif method not in (None, "base") or not has_params(params_folder(run, "base")):
        raise ValueError(f"{run} is not the folder of a run: it has no config.json")
    name: str = config["methods"][0] if method is None else method
    if name == "base":
        folder, averaged = params_folder(run, name), False
    else:
        averaged = _averaged(run, config, averaged, checkpoint)
        seed = config["seeds"][0] if seed is None else seed
        folder = params_folder(run, name, seed, averaged and checkpoint == "final", checkpoint)
    if not has_params(folder):
        there = sorted(path.name for path in (run / "params").glob("[!.]*") if has_params(path))
        raise ValueError(
            f"{run} has no finished parameters {folder.name}; there are: {', '.join(there) or 'none'}"
        )
    module, base_like = described.network_of(name), _like(described.module, event_shape)
    base_params = load_params(params_folder(run, "base"), base_like)
    if name in described.two_time_methods:
        initial = init_params(module, jax.random.key(0), event_shape)
        base_params = networks.two_time_params(base_params, initial)
    drift, average = from_linen(module), None
    if lora is not None:
        drift = lora.on_activations(drift)
    if getattr(module, "two_times", False):
        average = two_times(drift)
        drift = instantaneous(average)
    if name == "base":
        params = base_params
    elif lora is None:
        params = load_params(folder, _like(module, event_shape))
    else:
        adapters = jax.eval_shape(lambda: lora.adapter.init(jax.random.key(0), base_like))
        params = lora.adapter.apply(load_params(folder, adapters), base_params)
    return Loaded(drift, params, base_params, event_shape, name, lora, averaged, average)


def _like(module: linen.Module, event_shape: tuple[int, ...]) -> Params:
    """Shapes and dtypes of the parameters of a network."""
    return jax.eval_shape(lambda: init_params(module, jax.random.key(0), event_shape))


def _averaged(
    run: Path, config: Mapping[str, Any], averaged: bool | None, checkpoint: CheckpointName
) -> bool:
    """Whether averaged parameters are meant; those that the run scores where nothing is said."""
    scored = scores_average(config)
    if averaged is None:
        return scored
    if checkpoint == "best" and averaged != scored:
        by, other = ("averaged", "raw") if scored else ("raw", "averaged")
        raise ValueError(
            f"the best checkpoint of {run} was chosen by its {by} parameters, which alone are kept of it: ask for it, "
            f"or for {other} ones, not for both"
        )
    return averaged

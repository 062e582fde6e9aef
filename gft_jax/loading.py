"""Finished runs: what a run folder says of its model, and how a notebook gets it back."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from gft_jax import networks
from gft_jax.checkpoints import has_params, load_params, save_params
from gft_jax.drifts import from_linen
from gft_jax.networks.lora import LowRank, low_rank
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
    lora: LowRank | None = None
    """The low-rank adaptation of a run that has one: ``params`` of its methods are then `LoRAParams`, and
    ``lora.merge(*params)`` those of the network alone."""
    averaged: bool = False
    """Whether ``params`` are averaged ones."""


class Described(NamedTuple):
    """A network as a folder describes it."""

    module: linen.Module
    event_shape: tuple[int, ...]
    """Shape of one sample."""
    lora: LowRank | None
    """The low-rank adaptation of a run that has one."""


def describe_model(
    run: str | os.PathLike[str],
    module: linen.Module,
    event_shape: tuple[int, ...],
    lora: LowRank | None = None,
) -> None:
    """Writes RUN/model.json: a network of `gft_jax.networks`, its settings, and the shape of its samples.

    Args:
        run: the folder, which there must be.
        module: the network.
        event_shape: shape of one sample.
        lora: the low-rank adaptation by which the run fine-tunes it: the parameters of its methods are adapters.

    Raises:
        ValueError: if the network is not one of the library's, which alone can be made again by name, or one of its
            settings is no number, text, truth value, dtype, None or sequence of these.
    """
    name = type(module).__name__
    if getattr(networks, name, None) is not type(module):
        raise ValueError(
            f"{name} is not a network of gft_jax.networks; keep your own module beside its parameters"
        )
    settings = {
        field.name: _written(name, field.name, getattr(module, field.name))
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name")
    }
    model: dict[str, Any] = {"network": name, "settings": settings, "event_shape": list(event_shape)}
    if lora is not None:
        model["lora"] = lora.settings._asdict()
    path = Path(run) / MODEL_FILE
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(model, indent=2) + "\n")
    os.replace(partial, path)


def described_model(run: str | os.PathLike[str]) -> Described:
    """The network that RUN/model.json describes, and the shape of its samples.

    Raises:
        ValueError: if there is no such file, or it describes no network of this version.
    """
    path = Path(run) / MODEL_FILE
    if not path.is_file():
        raise ValueError(f"{run} is not the folder of a run or of a model: it has no {MODEL_FILE}")
    try:
        model = json.loads(path.read_text())
        name, event_shape = model["network"], tuple(model["event_shape"])
        settings = {key: _read(key, value) for key, value in model["settings"].items()}
        lora = low_rank(**model["lora"]) if "lora" in model else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a network ({type(error).__name__}: {error})") from error
    network = getattr(networks, name, None) if name in networks.__all__ else None
    if not (isinstance(network, type) and issubclass(network, linen.Module)):
        raise ValueError(f"{path} names the network {name!r}, which this version of gft_jax does not have")
    try:
        return Described(network(**settings), event_shape, lora)
    except TypeError as error:
        raise ValueError(f"{path} has settings that {name} of this version does not take: {error}") from error


def save_model(
    folder: str | os.PathLike[str], module: linen.Module, params: Params, event_shape: tuple[int, ...]
) -> None:
    """Keeps a pretrained network, so that `load` and the programs find it: FOLDER/model.json and FOLDER/params/base.

    Args:
        folder: a new folder, or an empty one.
        module: a network of `gft_jax.networks`.
        params: its parameters.
        event_shape: shape of one sample.

    Raises:
        ValueError: as of `describe_model`; for parameters of another network, or of another dtype than its
            ``param_dtype`` (names the first that differs).
        FileExistsError: if the folder holds parameters already.
    """
    check_params(params, module, event_shape)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_params(params_folder(folder, "base"), params)
    describe_model(folder, module, event_shape)


def check_params(
    params: Params, module: linen.Module, event_shape: tuple[int, ...], *, with_dtypes: bool = True
) -> None:
    """Refuses parameters that are not those of a network.

    Args:
        params: the parameters.
        module: the network.
        event_shape: shape of one sample.
        with_dtypes: whether they must have the dtype too in which the network makes its parameters.

    Raises:
        ValueError: naming the first that is missing, too many, or of another shape or dtype.
    """

    def told(leaf: Any) -> str:
        return f"{jnp.result_type(leaf) if with_dtypes else 'shape '}{jnp.shape(leaf)}"

    like = jax.eval_shape(lambda: init_params(module, jax.random.key(0), event_shape))
    expected, given = (
        {jax.tree_util.keystr(path): told(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (like, params)
    )
    differing = sorted(
        name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)
    )
    if differing:
        name = differing[0]
        raise ValueError(
            f"parameters do not fit {type(module).__name__} for samples of shape {event_shape}: params{name} is "
            f"{given.get(name, 'missing')}, expected {expected.get(name, 'none')}; {len(differing)} differ in all"
            + (" (the dtype is the network's param_dtype)" if with_dtypes else "")
        )


def _written(network: str, name: str, value: Any) -> Any:
    """A setting as JSON: of a dtype its name."""
    if name.endswith("dtype") and value is not None:
        return jnp.dtype(value).name
    try:
        return json.loads(json.dumps(value, default=dict))
    except TypeError as error:
        raise ValueError(
            f"{name}={value!r} of {network} cannot be written down; a network of a run has settings that are numbers, "
            "texts, truth values, dtypes, None or sequences of these"
        ) from error


def _read(name: str, value: Any) -> Any:
    if name.endswith("dtype") and value is not None:
        return jnp.dtype(value)
    return _as_tuple(value)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(each) for each in value) if isinstance(value, list) else value


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


def load(
    run: str | os.PathLike[str],
    method: str | None = None,
    seed: int | None = None,
    *,
    averaged: bool | None = None,
    checkpoint: CheckpointName = "final",
) -> Loaded:
    """Drift and parameters of a finished run, or of a model that `save_model` or an import kept.

    The drift is the network as it is. Where weights that predict noise were imported, it is no velocity before
    `gft_jax.drifts.from_convention`; `check_velocity` tells.

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
    module, event_shape, lora = described_model(run)
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
    like = jax.eval_shape(lambda: init_params(module, jax.random.key(0), event_shape))
    base_params = load_params(params_folder(run, "base"), like)
    drift = from_linen(module)
    if lora is None:
        return Loaded(drift, load_params(folder, like), base_params, event_shape, name, None, averaged)
    drift, params = lora.on_activations(drift), base_params
    if name != "base":
        adapters = jax.eval_shape(lambda: lora.adapter.init(jax.random.key(0), like))
        params = lora.adapter.apply(load_params(folder, adapters), base_params)
    return Loaded(drift, params, base_params, event_shape, name, lora, averaged)


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


def init_params(module: linen.Module, key: Any, event_shape: tuple[int, ...]) -> Params:
    """Random parameters of a drift network for samples of a shape."""
    widths, cond = getattr(module, "cond_features", None), None
    if widths is not None:
        null = networks.null_condition(getattr(module, "num_classes", None), widths)
        cond = jax.tree.map(lambda row: jnp.asarray(row)[None], null)
    return jax.jit(module.init)(key, jnp.zeros(1), jnp.zeros((1, *event_shape)), cond)["params"]

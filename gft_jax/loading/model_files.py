"""Networks by name in a folder: ``model.json``, and models kept with their parameters."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen

from gft_jax import networks
from gft_jax.checkpoints import save_params
from gft_jax.loading.network_params import check_params
from gft_jax.loading.run_files import params_folder
from gft_jax.networks.lora import LowRank, low_rank
from gft_jax.types import Params

MODEL_FILE = "model.json"


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

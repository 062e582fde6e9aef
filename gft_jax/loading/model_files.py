"""Networks by name in a folder: ``model.json``, and models kept with their parameters."""

import dataclasses
import json
import os
from collections.abc import Sequence
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
    two_time_methods: tuple[str, ...] = ()
    """The methods of a run whose parameters are of the network with a second time, while its base has none."""

    def network_of(self, method: str) -> linen.Module:
        """The network whose parameters a method has."""
        return self.module.clone(two_times=True) if method in self.two_time_methods else self.module


def describe_model(
    run: str | os.PathLike[str],
    module: linen.Module,
    event_shape: tuple[int, ...],
    lora: LowRank | None = None,
    two_time_methods: Sequence[str] = (),
) -> None:
    """Writes RUN/model.json: a network of `gft_jax.networks`, its settings, and the shape of its samples.

    The base of a run and most methods are of this network. Methods that train average velocities are of its form with
    a second time, ``module.clone(two_times=True)``, and are named.

    Args:
        run: the folder, which there must be.
        module: the network.
        event_shape: shape of one sample.
        lora: the low-rank adaptation by which the run fine-tunes it: the parameters of its methods are adapters.
        two_time_methods: the methods of the run whose parameters are those of the two-time form.

    Raises:
        ValueError: if the network is not one of the library's, which alone can be made again by name, or one of its
            settings is no number, text, truth value, dtype, None or sequence of these. For two_time_methods of a
            network that has no two-time form, or is one itself; with ``lora``; with the base among them.
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
    if two_time_methods:
        _check_two_time_methods(two_time_methods, module, lora)
        model["two_time_methods"] = list(two_time_methods)
    path = Path(run) / MODEL_FILE
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(model, indent=2) + "\n")
    os.replace(partial, path)


def described_model(run: str | os.PathLike[str]) -> Described:
    """The network that RUN/model.json describes, and the shape of its samples.

    Raises:
        ValueError: if there is no such file, or it describes no network of this version; if it names methods of two
            times that `describe_model` refuses.
    """
    path = Path(run) / MODEL_FILE
    if not path.is_file():
        raise ValueError(f"{run} is not the folder of a run or of a model: it has no {MODEL_FILE}")
    try:
        model = json.loads(path.read_text())
        name, event_shape = model["network"], tuple(model["event_shape"])
        settings = {key: _read(key, value) for key, value in model["settings"].items()}
        lora = low_rank(**model["lora"]) if "lora" in model else None
        two_time_methods = _names(model.get("two_time_methods", []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a network ({type(error).__name__}: {error})") from error
    network = getattr(networks, name, None) if name in networks.__all__ else None
    if not (isinstance(network, type) and issubclass(network, linen.Module)):
        raise ValueError(f"{path} names the network {name!r}, which this version of gft_jax does not have")
    try:
        module = network(**settings)
    except TypeError as error:
        raise ValueError(f"{path} has settings that {name} of this version does not take: {error}") from error
    if two_time_methods:
        try:
            _check_two_time_methods(two_time_methods, module, lora)
        except ValueError as error:
            raise ValueError(f"{path} does not describe a network: {error}") from error
    return Described(module, event_shape, lora, two_time_methods)


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


def _names(value: Any) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise TypeError(f"two_time_methods must be a list of names, got {value!r}")
    return tuple(value)


def _check_two_time_methods(methods: Sequence[str], module: linen.Module, lora: LowRank | None) -> None:
    """Refuses methods of two times that no folder can hold.

    Raises:
        ValueError: saying why.
    """
    named, name = ", ".join(methods), type(module).__name__
    two_times = getattr(module, "two_times", None)
    if two_times is None:
        raise ValueError(
            f"{name} has no form of two times, and two_time_methods names {named}: networks of gft_jax.networks with "
            "the field two_times have one"
        )
    if two_times:
        raise ValueError(
            f"{name} has two times itself, so that all methods of the run have them: two_time_methods is {named}, "
            "leave it out"
        )
    if "base" in methods:
        raise ValueError(
            f"two_time_methods is {named}: the base is kept as it was pretrained, and is none of them"
        )
    if lora is not None:
        raise ValueError(
            f"two_time_methods is {named}, and the adapters of a run are of one network: give the base its second time "
            "before (two_times=True, gft_jax.networks.two_time_params), describe that network, and leave them out"
        )

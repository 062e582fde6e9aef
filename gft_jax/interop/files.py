"""Files of PyTorch weights, read into NumPy arrays: safetensors without torch, ``.pt`` with it."""

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PREFERRED = "ema"
"""The entry that is read where a file has several state dicts: the averaged weights."""


def read_state_dict(file: str | os.PathLike[str], entry: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file of weights by name, in the layout of PyTorch and in their own dtype.

    A ``.safetensors`` file needs the extra "weights", a ``.pt`` or ``.pth`` file the extra "torch"; the latter is
    loaded with ``weights_only=True``, so that it cannot run code. bfloat16 comes as float32 from torch's files.

    Args:
        file: the file.
        entry: which one of the state dicts is read where the file holds several, as the checkpoints of SiT do:
            ``{"model": ..., "ema": ..., "opt": ...}``. Default "ema" where there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: what reads it is not installed; says what to install.
        ValueError: the file is cut short or of another kind; it has no such entry, or several and none is named.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        content = _safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        content = _torch(path)
    else:
        raise ValueError(f"{path} must be a .safetensors, .pt or .pth file")
    return _arrays(_chosen(content, entry, path), path)


def write_state_dict(
    file: str | os.PathLike[str], state: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays by name as a safetensors file, whole or not at all; ``torch`` and others read it.

    Args:
        file: its name ends with ``.safetensors``.
        state: arrays in the layout of PyTorch, such as those of `sit_state_dict`.
        metadata: words that are kept with them.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: for another ending.
    """
    path = Path(file)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end with .safetensors")
    numpy_format = _safetensors_numpy()
    partial = path.with_name(path.name + ".partial")
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    partial.write_bytes(numpy_format.save(arrays, dict(metadata or {})))
    os.replace(partial, path)


def _safetensors_numpy() -> Any:
    try:
        from safetensors import numpy as numpy_format
    except ImportError as error:
        raise ImportError('safetensors is not installed: pip install "gft_jax[weights]"') from error
    return numpy_format


def _safetensors(path: Path) -> dict[str, Any]:
    numpy_format = _safetensors_numpy()
    from safetensors import SafetensorError

    try:
        return numpy_format.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file ({error}): fetch it again") from error


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f'{path} is read by torch, which is not installed: pip install "gft_jax[torch]", or convert the file '
            "to safetensors"
        ) from error
    try:
        # SiT's checkpoints hold the settings of their training, a namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no file of weights, or holds other objects too, which are not loaded since they can run code: "
            "save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:  # of a short file, Errno 22 too
        first = str(error).split("\n")[0]
        raise ValueError(f"{path} is cut short or damaged ({first}): fetch it again") from error


def _chosen(content: Any, entry: str | None, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}")
    trees = [name for name, value in content.items() if isinstance(value, Mapping) and _is_state(value)]
    if entry is not None:
        if entry not in trees:
            there = f"there are {', '.join(map(str, trees))}" if trees else "it is a single one itself"
            raise ValueError(f"{path} has no state dict {entry!r}; {there}")
        return content[entry]
    if _is_state(content):
        return content
    if PREFERRED in trees or len(trees) == 1:
        return content[PREFERRED if PREFERRED in trees else trees[0]]
    raise ValueError(
        f"{path} holds no single state dict, but entries {', '.join(map(str, content)) or 'none'}"
        + (f": name one of {', '.join(map(str, trees))}" if trees else "")
    )


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and hasattr(v, "shape") for k, v in value.items())


def _arrays(state: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    def array(value: Any) -> np.ndarray:
        if isinstance(value, np.ndarray):
            return value
        value = value.detach()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()

    try:
        return {name: array(value) for name, value in state.items()}
    except TypeError as error:  # a dtype that NumPy does not have
        raise ValueError(f"{path} holds arrays that NumPy does not have: {error}") from error

"""Networks of images: made by flags where one is pretrained, else found in the folder of the base."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flax import linen

import gft_jax as gft
from gft_jax.checkpoints import has_params
from gft_jax.loading import described_model, params_folder

NetworkName = Literal["unet", "sit", "mlp"]


class Pretrained(NamedTuple):
    """Where a base lies, and what it is."""

    folder: Path
    method: str
    """Of the run whose parameters are taken, or "base"."""
    averaged: bool
    module: linen.Module
    event_shape: tuple[int, ...]
    classes: tuple[str, ...]
    """Names of the classes that it was trained on, as far as its run says; else none."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the network knows; None of one without."""
        return getattr(self.module, "num_classes", None)


def pretrained(folder: Path, method: str | None) -> Pretrained:
    """What `gft_jax.load` would take as a base: the parameters of a finished run, or of a model that was kept.

    Args:
        folder: of a run, or one that `gft_jax.loading.save_model` wrote.
        method: of the run; None for its first.

    Raises:
        ValueError: if the folder is neither, or the run has no such method.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--base is {folder}, and there is no such folder; give that of a finished run or of a model"
        )
    module, event_shape = described_model(folder)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"methods": ["base"]}
    methods = [*config["methods"], "base"]
    name = methods[0] if method is None else method
    if name not in methods:
        raise ValueError(f"--base-method is {name}; {folder} has: {', '.join(dict.fromkeys(methods))}")
    averaged = name != "base" and bool(config.get("scores_average"))
    kept = params_folder(folder, name, None if name == "base" else config["seeds"][0], averaged)
    if not has_params(kept):
        raise ValueError(f"{folder} has no parameters {kept.name}: the run has not finished, or lost them")
    return Pretrained(folder, name, averaged, module, event_shape, tuple(config.get("classes", ())))


def network_of(
    name: NetworkName,
    *,
    hidden: int,
    depth: int,
    num_heads: int,
    patch_size: int,
    multipliers: tuple[int, ...],
    attention: tuple[int, ...],
    num_classes: int | None,
) -> linen.Module:
    """A network of this name and size, not yet initialised.

    Raises:
        ValueError: if the sizes do not fit each other.
    """
    if name == "mlp":
        return gft.networks.ResidualMLP(hidden=hidden, depth=depth, num_classes=num_classes)
    if name == "sit":
        return gft.networks.SiT(
            hidden_size=hidden,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            num_classes=num_classes,
        )
    groups = next(count for count in (32, 16, 8, 4, 2, 1) if hidden % count == 0)
    return gft.networks.UNet(
        channels=hidden,
        multipliers=multipliers,
        num_res_blocks=depth,
        attention_resolutions=attention,
        num_heads=num_heads,
        norm_groups=groups,
        num_classes=num_classes,
    )

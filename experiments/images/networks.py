"""Networks of images: made by flags where one is pretrained, else found in the folder of the base."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from flax import linen

import gft_jax as gft
from gft_jax.checkpoints import has_params
from gft_jax.loading import check_velocity, described_model, init_params, params_folder, scores_average
from gft_jax.networks.condition_embedding import takes_condition
from gft_jax.networks.lora import LowRank, low_rank

NetworkName = Literal["unet", "sit", "mlp"]

_LORA_PATTERNS: dict[type[linen.Module], tuple[str, ...]] = {
    gft.networks.SiT: (
        "*/qkv/kernel",
        "*/proj/kernel",
        "*/fc1/kernel",
        "*/fc2/kernel",
        "*adaLN_modulation/kernel",
    ),
    gft.networks.UNet: ("*/conv_*/kernel", "*/embedding/kernel", "*/qkv/kernel", "*/out/kernel"),
    gft.networks.ResidualMLP: ("block_*/kernel", "modulation/kernel"),
}
"""Kernels that low-rank adaptation changes by default: of attention, perceptrons and residual blocks, and those that
make their modulation out of time and condition."""
_CONDITION: dict[type[linen.Module], str] = {
    gft.networks.SiT: "y_embedder/*",
    gft.networks.UNet: "condition/*",
    gft.networks.ResidualMLP: "condition/*",
}
"""The embedding of the condition, which is trained whole: without it adapters see no class that is new to the base."""


class Pretrained(NamedTuple):
    """Where a base lies, and what it is."""

    folder: Path
    method: str
    """Of the run whose parameters are taken, or "base"."""
    module: linen.Module
    event_shape: tuple[int, ...]
    classes: tuple[str, ...]
    """Names of the classes that it was trained on, as far as its run says; else none."""
    path: str | None
    """Name of the path that it was trained on; None if its folder does not say."""

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
        ValueError: if the folder is neither, the run has no such method, or its network predicts no velocity, or takes
            another condition than one class label.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--base is {folder}, and there is no such folder; give that of a finished run or of a model"
        )
    described = described_model(folder)
    check_velocity(folder)
    _check_condition(folder, described.module)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"methods": ["base"]}
    methods = [*config["methods"], "base"]
    name = methods[0] if method is None else method
    if name not in methods:
        raise ValueError(f"--base-method is {name}; {folder} has: {', '.join(dict.fromkeys(methods))}")
    is_base = name == "base"
    averaged = not is_base and scores_average(config)
    kept = params_folder(folder, name, None if is_base else config["seeds"][0], averaged)
    if not has_params(kept):
        raise ValueError(f"{folder} has no parameters {kept.name}: the run has not finished, or lost them")
    return Pretrained(
        folder,
        name,
        described.network_of(name),
        described.event_shape,
        tuple(config.get("classes", ())),
        config.get("config", {}).get("path"),
    )


def _check_condition(folder: Path, module: linen.Module) -> None:
    """Refuses networks that take more than one label, which is all that images of a folder have."""
    for name, allowed in (("cond_features", type(None)), ("num_classes", int | None)):
        value = getattr(module, name, None)
        if not isinstance(value, allowed):
            raise ValueError(
                f"the network of {folder} has {name}={value}: its condition is more than the class of an image, and a "
                "run on images knows nothing else. Fine-tune it in your own code, by gft_jax.finetuner"
            )


def low_rank_of(
    module: linen.Module,
    event_shape: tuple[int, ...],
    patterns: tuple[str, ...],
    rank: int,
    alpha: float | None,
) -> LowRank:
    """Low-rank adaptation of a network, with the embedding of its condition trained whole.

    Args:
        module: the network.
        event_shape: shape of one sample.
        patterns: kernels to adapt; empty for those that this kind of network has by default.
        rank: of the updates.
        alpha: their scale; None for the rank.

    Raises:
        ValueError: if a pattern matches nothing, or the rank is larger than a kernel allows.
    """
    lora = low_rank(
        patterns or _LORA_PATTERNS[type(module)],
        rank=rank,
        alpha=alpha,
        stacked=("blocks/*",) if getattr(module, "scan", False) else (),
        whole=(_CONDITION[type(module)],) if takes_condition(module) else (),
    )

    def adapters() -> Any:
        return lora.adapter.init(jax.random.key(0), init_params(module, jax.random.key(0), event_shape))

    jax.eval_shape(adapters)
    return lora


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

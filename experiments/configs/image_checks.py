"""What runs on images refuse by their settings alone, before a network or an image is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments.configs.settings import MethodName, require

if TYPE_CHECKING:
    from experiments.configs.images import Images

PRETRAINING: MethodName = "from-scratch"
_WHOLE: frozenset[MethodName] = frozenset({PRETRAINING, "l2-sp", "interpolated"})
"""Methods that change or compare all parameters of a network."""


class Use(NamedTuple):
    """When settings are taken into account; else they must be left at their defaults."""

    names: tuple[str, ...]
    holds: Callable[[Images], bool]
    otherwise: str
    """Why they are not, where it does not hold."""


USES = (
    Use(
        ("learning_rate",),
        lambda c: set(c.methods) != {PRETRAINING},
        "from-scratch is trained at --base-learning-rate",
    ),
    Use(("base_learning_rate",), lambda c: PRETRAINING in c.methods, "from-scratch alone is trained at it"),
    Use(
        ("start_weight", "cooling_fraction", "base_every"), lambda c: not c.pretrain, "--pretrain has no base"
    ),
    Use(("base_method",), lambda c: not c.pretrain, "--pretrain has no base"),
    Use(("size", "mode"), lambda c: not c.reads_latents, "latents are taken as they are"),
    Use(("layout",), lambda c: c.reads_latents, "it is that of latents in a .npz file"),
    Use(
        ("network", "hidden", "depth", "num_heads", "patch_size", "multipliers", "attention"),
        lambda c: c.pretrain,
        "the network is that of --base",
    ),
    Use(("multipliers", "attention"), lambda c: c.network == "unet", "it is a setting of --network unet"),
    Use(("patch_size",), lambda c: c.network == "sit", "it is a setting of --network sit"),
    Use(("num_heads",), lambda c: c.network != "mlp", "a perceptron has no attention"),
    Use(
        ("remat", "scan"), lambda c: not c.pretrain or c.network == "sit", "it is a setting of --network sit"
    ),
    Use(
        ("lora_alpha", "lora_patterns"),
        lambda c: c.lora_rank is not None,
        "without --lora-rank there are no adapters",
    ),
)
"""What is told apart by the settings; `check_unused` is for what the data or the base decide."""


def check_unused(config: Images, names: Sequence[str], otherwise: str) -> None:
    """Refuses settings that would be passed over: they must be at their defaults.

    Args:
        config: the settings.
        names: of those that are passed over.
        otherwise: why they are.

    Raises:
        ValueError: naming the flag, its default, and the reason.
    """
    for name in names:
        default = getattr(type(config), name)
        value = getattr(config, name)
        require(value == default, name, value, f"the default, {default}: {otherwise}")


def check_images(config: Images) -> None:
    """Refuses settings that cannot work, contradict each other, or would be passed over.

    Raises:
        ValueError: that says what was given and what is allowed.
    """
    has_base = config.base is not None or (config.resume and not config.pretrain)
    require(config.pretrain != has_base, "base", config.base, "a folder, or else --pretrain")
    if config.pretrain:
        only = f"{PRETRAINING}, with --pretrain"
        require(config.methods == (PRETRAINING,), "methods", config.methods, only)
        require(config.coupling != "base-exact", "coupling", config.coupling, "another, with --pretrain")
        require(config.lora_rank is None, "lora_rank", config.lora_rank, "none, with --pretrain")
    for use in USES:
        if not use.holds(config):
            check_unused(config, use.names, use.otherwise)
    _check_ranges(config)
    require(len(set(config.classes)) == len(config.classes), "classes", config.classes, "each class once")
    divides = config.batch_size % config.num_microbatches == 0
    allowed = f"a divisor of batch_size={config.batch_size}"
    require(divides, "num_microbatches", config.num_microbatches, allowed)
    if config.lora_rank is not None:
        whole = ", ".join(sorted(_WHOLE & set(config.methods)))
        require(not whole, "methods", whole, "others: with --lora-rank there are adapters alone")
    flips = config.flip and config.coupling == "semi-discrete"
    only = "off, with --coupling semi-discrete, whose images stay as they are"
    require(not flips, "flip", config.flip, only)


def _check_ranges(config: Images) -> None:
    for name in ("num_heads", "patch_size", "num_microbatches", "rows_at_once"):
        require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")
    require(config.lora_rank is None or config.lora_rank >= 1, "lora_rank", config.lora_rank, "at least 1")
    require(math.isfinite(config.guidance), "guidance", config.guidance, "a finite number")
    require(config.size is None or config.size >= 1, "size", config.size, "at least 1")
    require(0.0 < config.held_out < 1.0, "held_out", config.held_out, "above 0 and below 1")
    require(config.num_evaluated >= 2, "num_evaluated", config.num_evaluated, "at least 2")
    require(0.0 <= config.label_dropout < 1.0, "label_dropout", config.label_dropout, "in [0, 1)")
    require(0.0 <= config.averaging < 1.0, "averaging", config.averaging, "in [0, 1)")
    for name in ("clip", "tolerance"):
        value = getattr(config, name)
        require(value is None or value > 0.0, name, value, "above 0, or none")

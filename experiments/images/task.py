"""What a run on images trains on, and what it trains; refused before images are read if one does not fit the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import linen

from experiments.configs.image_checks import check_unused
from experiments.configs.settings import require
from experiments.data.digests import check_same
from experiments.data.division import Division, divide
from experiments.data.image_rows import IN_MEMORY, NUM_SHOWN, LabelledRows, num_bytes, read
from experiments.data.shifted import ShiftedData
from experiments.files import read_json
from experiments.images.evaluator import Features
from experiments.images.networks import Pretrained, low_rank_of, network_of
from gft_jax.loading import init_params
from gft_jax.networks.lora import LowRank
from gft_jax.pairing.checks import check_labels

if TYPE_CHECKING:
    from experiments.configs.images import Images


_FORMS = ("remat", "scan")
"""Settings of a network that change how it is computed, and not what."""


class ImageTask(NamedTuple):
    """What a run trains on, and what it trains."""

    rows: LabelledRows
    """All images; ``labels`` are None where the network knows no classes."""
    division: Division
    """Which of them are trained on."""
    module: linen.Module
    lora: LowRank | None
    """The low-rank adaptation; None where all parameters are trained."""
    facts: dict[str, Any]
    """What config.json, and so the page, says of them."""

    @property
    def num_classes(self) -> int | None:
        """Classes that the network knows, where the data have any; else None."""
        return None if self.rows.labels is None else getattr(self.module, "num_classes", None)

    def check_same_data(self, run: Path) -> None:
        """Refuses other data than those that a run was begun on, with a ValueError that says what differs."""
        begun = read_json(run / "config.json").get("data_fingerprint")
        check_same(run, begun, self.facts["data_fingerprint"])

    def read(self) -> ShiftedData:
        """The data, read now."""
        return read(self.rows, self.division)


def task_of(config: Images, base: Pretrained | None) -> ImageTask:
    """Data and network of a run that starts from a base, or pretrains one.

    What settings, base, names of classes and the first image show not to fit is refused before other images are read,
    and none is kept before `ImageTask.read`.

    Raises:
        ValueError: if data or base cannot be read, do not fit each other, or labels are out of the range of
            classes that the network knows; for settings that neither takes into account.
    """
    config.feature_extractor()
    if base is not None:
        _check_base(config, base)
    found = config.rows(config.classes)
    if base is not None and base.num_classes is not None and not config.classes:
        found = found.numbered_as(base.classes, base.num_classes)
    module = _network(config, base, found)
    found = _with_labels(config, found, getattr(module, "num_classes", None))
    lora = None
    if config.lora_rank is not None:
        lora = low_rank_of(
            module, found.event_shape, config.lora_patterns, config.lora_rank, config.lora_alpha
        )
    division = divide(found.labels, len(found.rows), config.held_out, config.num_evaluated)
    if config.coupling == "semi-discrete":
        _check_held_at_once(num_bytes(found.rows, len(division.target)))
    found = found.opened()
    _check_features(config.feature_extractor(), found)
    shown = [] if found.labels is None else found.labels[division.held_out[:NUM_SHOWN]].tolist()
    facts = {
        "samples_are": found.kind,
        "num_target": len(division.target),
        "classes": list(found.classes if base is None or found.labels is not None else base.classes),
        "shown_classes": [found.name_of(label) for label in shown],
        "scores_average": not config.raw,
        "data_fingerprint": found.fingerprint,
    }
    return ImageTask(found, division, module, lora, facts)


def _check_base(config: Images, base: Pretrained) -> None:
    """Refuses what a base alone shows not to fit the settings."""
    was = f"that of {base.folder}, {base.path}"
    require(base.path in (None, config.path), "path", config.path, was)
    for name in _FORMS:
        off = f"off: {type(base.module).__name__} has no such setting"
        require(not getattr(config, name) or hasattr(base.module, name), name, True, off)
    if base.num_classes is None:
        check_unused(config, ("classes", "label_dropout"), f"the network of {base.folder} knows no classes")
    elif len(config.classes) > base.num_classes:
        raise ValueError(
            f"--classes names {len(config.classes)} classes, and the network of {base.folder} has "
            f"{base.num_classes}: name so many at most, in the order of their numbers"
        )


def _network(config: Images, base: Pretrained | None, found: LabelledRows) -> linen.Module:
    """The network, which takes samples of this shape.

    Raises:
        ValueError: if it does not.
    """
    module = _new_network(config, found.num_classes) if base is None else base.module
    if base is not None and base.event_shape != found.event_shape:
        bring = "--size and --mode bring images" if found.kind == "images" else "--layout nchw brings latents"
        raise ValueError(
            f"{base.folder} is a network of samples of shape {base.event_shape}, and --data holds such of "
            f"{found.event_shape} (height, width, channels); {bring} to another shape"
        )
    form: dict[str, Any] = {name: True for name in _FORMS if getattr(config, name)}
    module = module.clone(**form)
    jax.eval_shape(lambda: init_params(module, jax.random.key(0), found.event_shape))
    return module


def _new_network(config: Images, num_classes: int | None) -> linen.Module:
    return network_of(
        config.network,
        hidden=config.hidden,
        depth=config.depth,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        multipliers=config.multipliers,
        attention=config.attention,
        num_classes=num_classes,
    )


def _with_labels(config: Images, found: LabelledRows, num_classes: int | None) -> LabelledRows:
    """The same rows with labels that the network takes; without, where data or network have no classes."""
    if found.labels is None or num_classes is None:
        whose = "the data have" if found.labels is None else "the network has"
        check_unused(config, ("label_dropout",), f"{whose} no classes")
        require(config.guidance == 1.0, "guidance", config.guidance, f"1, since {whose} no classes")
        return found._replace(labels=None)
    check_labels(found.labels, num_classes)
    if config.coupling == "semi-discrete":
        raise ValueError(
            "--coupling is semi-discrete, which does not respect classes: each would get the noise that lies near "
            "it (see docs/which-method.md). Allowed with classes are the others"
        )
    return found


def _check_features(features: Features | None, found: LabelledRows) -> None:
    if features is None:
        return
    x = np.asarray(found.rows[np.zeros(2, int)], np.float32)
    shape = np.shape(features(x))
    if len(shape) != 2 or shape[0] != len(x):
        raise ValueError(
            f"--features makes an array {shape} of {len(x)} samples of shape {x.shape[1:]}; allowed are features "
            "[num, width], a row for each sample"
        )


def _check_held_at_once(size: int) -> None:
    """Every row is compared with all data: the device must hold them, as memory holds as much anyway."""
    if size > IN_MEMORY:
        raise ValueError(
            f"--coupling is semi-discrete, which holds all data of fine-tuning at once, here {size / 2**20:,.0f} MiB; "
            f"it is for {IN_MEMORY / 2**20:,.0f} MiB at most. Give another coupling, or fewer or smaller images"
        )

"""Fine-tuning of a pretrained network on images of a folder, or on latents of a file.

    python -m experiments.train images --data old --pretrain --out runs/images/base
    python -m experiments.train images --data new --base runs/images/base

The first trains a network from scratch, the second fine-tunes it; experiments/README.md has an example on digits with
times and what came out.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import tyro
from flax import linen

from experiments.configs.settings import MethodName, Settings, require
from experiments.data.image_rows import NUM_SHOWN, LabelledRows, Layout, folder_rows, latent_rows, split
from experiments.data.shifted import ShiftedData
from experiments.images.evaluator import Features, Sampler
from experiments.images.networks import NetworkName, Pretrained, low_rank_of, network_of, pretrained
from gft_jax.loading import init_params
from gft_jax.networks.lora import LowRank
from gft_jax.pairing.checks import check_labels

PRETRAINING: MethodName = "from-scratch"


class ImageTask(NamedTuple):
    """What a run trains on, and what it trains."""

    data: ShiftedData
    """``labels`` are None where the network knows no classes."""
    module: linen.Module
    lora: LowRank | None
    """The low-rank adaptation; None where all parameters are trained."""
    facts: dict[str, Any]
    """What config.json, and so the page, says of them."""

    @property
    def num_classes(self) -> int | None:
        """Classes that the network knows, where the data have any; else None."""
        return None if self.data.labels is None else getattr(self.module, "num_classes", None)


@dataclass(frozen=True)
class Images(Settings):
    """Fine-tune a pretrained network on images of a folder, or on latents of a file, by several methods.

    Results go to a fresh numbered folder runs/images/NNN; open its report.html. A finished run is itself a --base.
    """

    folder: Annotated[str, tyro.conf.arg(name="data")] = ""
    """Folder of images, or of one folder for each class; or a .npz file with an array ``latents`` and, where there are
    classes, integers ``labels``."""
    base: str | None = None
    """Where the pretrained network lies: the folder of a finished run, or of imported weights."""
    base_method: str | None = None
    """Which method's parameters of the run in --base; default its first. Averaged ones, if the run scored these."""
    pretrain: bool = False
    """Train a network from random parameters, in the place of --base; by the method from-scratch alone, at
    --base-learning-rate."""
    methods: tuple[MethodName, ...] = ("gradual-linear", "plain")
    """Methods to compare, in the order of the report."""

    size: int | None = None
    """Height and width to which images are cropped and resized; by default they are left as they are."""
    mode: Literal["L", "RGB", "RGBA"] | None = None
    """How images are read: grey, in colour, or with transparency; by default as they are."""
    layout: Layout = "nhwc"
    """Order of the axes of latents: channels last, or behind the number."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of their labels; some may have no images. By default those of the base, where
    it was trained by this program and they hold all that are here, else the class folders, sorted."""
    flip: bool = False
    """Mirror images of fine-tuning at random, left and right."""
    held_out: float = 0.2
    """Share of the images that are not trained on."""
    num_evaluated: int = 256
    """Held-out images by which samples are judged, at most; as many samples are drawn at each evaluation."""

    network: NetworkName = "unet"
    """Network to pretrain; else it is that of the base."""
    hidden: int = 64
    """Its width: channels of the first level of a U-Net, features of a token of SiT, units of a perceptron."""
    depth: int = 2
    """Its depth: residual blocks of each level of a U-Net, blocks of SiT and of a perceptron."""
    num_heads: int = 4
    """Heads of attention, of a U-Net or SiT."""
    patch_size: int = 2
    """Side of the patches of SiT, in pixels."""
    multipliers: tuple[int, ...] = (1, 2)
    """Widths of the levels of a U-Net, in units of --hidden."""
    attention: tuple[int, ...] = ()
    """Sides, in pixels, of the levels of a U-Net at which attention follows the blocks."""
    label_dropout: float = 0.1
    """Share of the rows whose class is hidden from the drift, as guidance needs."""
    remat: bool = False
    """Compute the blocks of SiT again in the backward pass, which then takes less memory."""

    lora_rank: int | None = None
    """Rank of a low-rank adaptation: the base stays as it is, and factors of updates are trained; and, whole, the
    embedding of classes. By default all parameters are trained."""
    lora_alpha: float | None = None
    """Scale of the updates, which are multiplied by alpha / rank; default the rank."""
    lora_patterns: tuple[str, ...] = ()
    """Names of the kernels to adapt, such as "*/qkv/kernel"; default those of attention, perceptrons and
    modulations of SiT, and of the residual blocks of other networks."""

    clip: float | None = 1.0
    """Largest norm of the gradient; a longer one is scaled down to it. None for any."""
    averaging: float = 0.999
    """Decay of the averaged parameters, in [0, 1)."""
    raw: bool = False
    """Score the raw parameters instead of the averaged ones."""
    num_microbatches: int = 1
    """Parts into which the rows of a batch (on each device) are divided, which are differentiated one after another."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of activations, in training and evaluation; parameters stay in float32."""

    sampling_steps: int = 50
    """Euler steps of the evaluations."""
    tolerance: float | None = None
    """Sample by Dopri5 of this relative and absolute tolerance, in the place of Euler's method."""
    guidance: float = 1.0
    """Scale of classifier-free guidance of the samples; 1 for none."""
    rows_at_once: int = 64
    """Samples that are drawn at once."""
    features: str | None = None
    """Function MODULE:NAME of samples [num, height, width, channels] -> features [num, width] in which distances are
    taken; by default in pixels."""

    steps: int = 2000
    """Steps of fine-tuning, or of pretraining."""
    batch_size: int = 64
    """Rows per step."""
    eval_every: int = 200
    """Steps between two evaluations on held-out images."""
    base_steps: tyro.conf.Suppress[int] = 1

    experiment: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        if self.pretrain and self.methods == type(self).methods:
            object.__setattr__(self, "methods", (PRETRAINING,))

    def check(self) -> None:
        """Refuses settings that cannot work."""
        super().check()
        has_base = self.base is not None or (self.resume and not self.pretrain)
        require(self.pretrain != has_base, "base", self.base, "a folder, or else --pretrain")
        if self.pretrain:
            only = f"{PRETRAINING}, with --pretrain"
            require(self.methods == (PRETRAINING,), "methods", self.methods, only)
            require(self.coupling != "base-exact", "coupling", self.coupling, "another, with --pretrain")
            require(self.base_method is None, "base_method", self.base_method, "none, with --pretrain")
        for name in ("num_heads", "patch_size", "num_microbatches", "rows_at_once"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.size is None or self.size >= 1, "size", self.size, "at least 1")
        require(0.0 < self.held_out < 1.0, "held_out", self.held_out, "above 0 and below 1")
        require(self.num_evaluated >= 2, "num_evaluated", self.num_evaluated, "at least 2")
        require(0.0 <= self.label_dropout < 1.0, "label_dropout", self.label_dropout, "in [0, 1)")
        require(0.0 <= self.averaging < 1.0, "averaging", self.averaging, "in [0, 1)")
        for name in ("clip", "tolerance"):
            value = getattr(self, name)
            require(value is None or value > 0.0, name, value, "above 0, or none")
        require(len(set(self.classes)) == len(self.classes), "classes", self.classes, "each class once")
        divides = self.batch_size % self.num_microbatches == 0
        require(
            divides, "num_microbatches", self.num_microbatches, f"a divisor of batch_size={self.batch_size}"
        )
        if self.lora_rank is None:
            given = self.lora_alpha is not None or self.lora_patterns
            require(not given, "lora_rank", None, "a number, with --lora-alpha or --lora-patterns")
        else:
            require(not self.pretrain, "lora_rank", self.lora_rank, "none, with --pretrain")
            whole = sorted({PRETRAINING, "l2-sp", "interpolated"} & set(self.methods))
            require(
                not whole, "methods", ", ".join(whole), "others: with --lora-rank there are adapters alone"
            )
        flips = self.flip and self.coupling == "semi-discrete"
        require(
            not flips, "flip", self.flip, "off, with --coupling semi-discrete, whose images stay as they are"
        )

    def feature_extractor(self) -> Features | None:
        """The function that --features names.

        Raises:
            ValueError: if there is none.
        """
        if self.features is None:
            return None
        module, _, name = self.features.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"--features is {self.features}, allowed is MODULE:FUNCTION: {error}") from error

    @property
    def sampler(self) -> Sampler:
        """How samples are made in the evaluations."""
        return Sampler(self.sampling_steps, self.tolerance, self.guidance, self.rows_at_once)

    @property
    def num_evaluations(self) -> int | None:
        """Calls of the network for a sample; None where steps adapt."""
        return self.sampler.num_evaluations

    def pretrained(self) -> Pretrained | None:
        """The base that --base names; None with --pretrain."""
        return None if self.base is None else pretrained(Path(self.base), self.base_method)

    def rows(self, classes: tuple[str, ...]) -> LabelledRows:
        """All images or latents.

        Args:
            classes: their classes in the order of their labels; empty for those that are found.
        """
        path = Path(self.folder)
        if path.suffix == ".npz":
            return latent_rows(path, self.layout, classes)
        return folder_rows(path, self.size, self.mode, classes)

    def task(self, own: Pretrained | None = None) -> ImageTask:
        """Data and network.

        Args:
            own: the copy of its base that a run keeps, which then takes the place of the one that --base names.

        Raises:
            ValueError: if data or base cannot be read, do not fit each other, or labels are out of the range of
                classes that the network knows.
        """
        self.feature_extractor()
        base = self.pretrained() if own is None or self.pretrain else own
        if base is not None:
            was = f"that of {base.folder}, {base.path}"
            require(base.path in (None, self.path), "path", self.path, was)
        found = self.rows(self.classes)
        facts: dict[str, Any] = {"samples_are": found.kind}
        if base is not None and not self.classes:
            found = found.numbered_as(base.classes)
        if base is None:
            module = self.new_network(len(found.classes) or None)
        else:
            module = base.module
            if base.event_shape != found.event_shape:
                raise ValueError(
                    f"{base.folder} is a network of samples of shape {base.event_shape}, and --data holds such of "
                    f"{found.event_shape} (height, width, channels); --size and --mode bring images to another shape"
                )
        if self.remat:
            require(
                hasattr(module, "remat"), "remat", True, f"off: {type(module).__name__} has no such setting"
            )
            module = module.clone(remat=True)
        # Refuses shapes that the network does not take.
        jax.eval_shape(lambda: init_params(module, jax.random.key(0), found.event_shape))
        num_classes = getattr(module, "num_classes", None)
        if found.labels is not None and num_classes is not None:
            self._check_classes(found, num_classes)
        else:
            require(self.guidance == 1.0, "guidance", self.guidance, "1, without classes of data and network")
            found = found._replace(labels=None)
        data = split(found, self.held_out, self.num_evaluated)
        facts |= {
            "num_target": len(data.target),
            "classes": list(found.classes),
            "shown_classes": []
            if data.labels is None or not found.classes
            else [found.classes[label] for label in data.labels.held_out[:NUM_SHOWN]],
            "scores_average": not self.raw,
            "data_fingerprint": found.fingerprint,
        }
        lora = None
        if self.lora_rank is not None:
            lora = low_rank_of(module, found.event_shape, self.lora_patterns, self.lora_rank, self.lora_alpha)
        return ImageTask(data, module, lora, facts)

    def new_network(self, num_classes: int | None) -> linen.Module:
        """The network to pretrain, for so many classes, or None without."""
        return network_of(
            self.network,
            hidden=self.hidden,
            depth=self.depth,
            num_heads=self.num_heads,
            patch_size=self.patch_size,
            multipliers=self.multipliers,
            attention=self.attention,
            num_classes=num_classes,
        )

    def _check_classes(self, found: LabelledRows, num_classes: int) -> None:
        check_labels(found.labels, num_classes)
        if self.coupling == "semi-discrete":
            raise ValueError(
                "--coupling is semi-discrete, which does not respect classes: each would get the noise that lies near "
                "it (see docs/which-method.md). Allowed with classes are the others"
            )

    def data(self) -> ShiftedData:
        """Images or latents ``[num, height, width, channels]``."""
        return self.task().data

    def facts(self) -> dict[str, Any]:
        """Those of the task say more."""
        return {}

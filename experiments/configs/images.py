"""Fine-tuning of a pretrained network on images of a folder, or on latents of a file.

    python -m experiments.train images --data old --pretrain --out runs/images/base
    python -m experiments.train images --data new --base runs/images/base

The first trains a network from scratch, the second fine-tunes it; experiments/README.md has an example on digits with
times and what came out.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from experiments.configs.image_checks import PRETRAINING, check_images
from experiments.configs.settings import MethodName, Settings, require
from experiments.data.image_rows import LabelledRows, Layout, folder_rows, latent_rows
from experiments.data.listed_images import index_file_of
from experiments.data.shifted import ShiftedData
from experiments.images.evaluator import Features, Sampler
from experiments.images.networks import NetworkName, Pretrained, pretrained
from experiments.images.task import ImageTask, task_of


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
    """Height and width to which images are cropped and resized; by default they are left as they are. Not for
    latents."""
    mode: Literal["L", "RGB", "RGBA"] | None = None
    """How images are read: grey, in colour, or with transparency; by default as they are."""
    layout: Layout = "nhwc"
    """Order of the axes of latents: channels last, or behind the number."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of their numbers; some may have no images. By default, with --pretrain, the
    class folders, sorted. With --base the folders are looked up there: if it knows all names, they have its numbers; if
    it knows none, they take its first numbers, which mean them from then on; if it knows some alone, say it here. For a
    base without names, as imported weights are, name the classes here, or the folders by their numbers. Labels of a
    file are numbers of the base."""
    flip: bool = False
    """Mirror images of fine-tuning at random, left and right."""
    held_out: float = 0.2
    """Share of the images that are not trained on."""
    num_evaluated: int = 256
    """Held-out images by which samples are judged, at most; as many samples are drawn at each evaluation."""

    network: NetworkName = "unet"
    """Network to pretrain. With --base it is that of the base, and this and --hidden to --attention are refused."""
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
    """Share of the rows whose class is hidden from the drift, as guidance needs; for data and networks with classes."""
    remat: bool = False
    """Compute the blocks of SiT again in the backward pass, which then takes less memory."""
    scan: bool = False
    """Run the blocks of SiT as a loop, which compiles in the time of one block; on CPU it also trains faster."""
    fused_attention: bool = True
    """Take cuDNN's attention, which needs less memory, where there can be one: in SiT, on NVIDIA GPUs of compute
    capability 8 or more, with --precision bfloat16 and heads of a multiple of 8 features, up to 128."""

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
        check_images(self)

    @property
    def reads_latents(self) -> bool:
        """Whether the data are latents of a file."""
        return Path(self.folder).suffix == ".npz"

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
        """All images or latents; of images the first alone has been read.

        Args:
            classes: their classes in the order of their labels; empty for those that are found.
        """
        require(self.folder != "", "data", "not given", "a folder of images, or a .npz file of latents")
        path = Path(self.folder)
        if self.reads_latents:
            return latent_rows(path, self.layout, classes)
        return folder_rows(
            path, self.size, self.mode, classes, index_file_of(path, Path("runs") / self.experiment)
        )

    def task(self, own: Pretrained | None = None) -> ImageTask:
        """Data and network; see `task_of` for what is refused.

        Args:
            own: the copy of its base that a run keeps, which then takes the place of the one that --base names.
        """
        return task_of(self, self.pretrained() if own is None or self.pretrain else own)

    def data(self) -> ShiftedData:
        """Images or latents ``[num, height, width, channels]``."""
        return self.task().read()

    def facts(self) -> dict[str, Any]:
        """Those of the task say more."""
        return {}

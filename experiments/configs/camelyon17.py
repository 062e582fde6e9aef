"""The small-image recipe of published flow matching on Camelyon17: a U-Net pretrained on three hospitals, for another.

    python -m experiments.train camelyon17 --root data --pretrain --steps 100000 --out runs/camelyon17/base
    python -m experiments.train camelyon17 --root data --base runs/camelyon17/base

The base is pretrained on the benchmark's "train", hospitals 0, 3 and 4 without their rows of "id_val", and fine-tuned
on "test", hospital 2; `--domain val` is hospital 1.

U-Net of 128 channels with multipliers 1-2-2-2 and two residual blocks a level (34.4 million parameters), batches of
64, Adam at 1e-4, gradients clipped to norm 1, averaged parameters with decay 0.9999, exact optimal transport in each
batch (within the classes tumour and normal), samples by Dopri5 at tolerance 1e-5. That is as published; our own are
the numbers of steps, no dropout, attention at the bottom alone (no level of 96 x 96 has the 16 pixels of the recipe),
mirrored images, bfloat16, and the evaluation on 256 held-out images.

Hardware: one GPU of 80 GB; less memory by --num-microbatches. Expected cost, by arithmetic and not measured: a
forward pass of an image is 101 GFLOP (the compiler's count, batch 1), so a plain step is 19 TFLOP and a gradual one
26. At 30 % of an H100's 989 TFLOP/s in bfloat16, an assumption for convolutions (`experiments/scaling` assumes 70 %
for large matrix products, and has transformers alone), the 100,000 steps of pretraining take 1.8 hours, the 20,000 of
each method half an hour or less. An evaluation draws 256 samples, 26 TFLOP for each evaluation of the drift: about a
tenth of a second, and Dopri5 at this tolerance takes some hundreds.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.configs.settings import FineTuningCouplingName
from experiments.configs.wilds import Wilds
from experiments.images.networks import NetworkName


@dataclass(frozen=True)
class Camelyon17(Wilds):
    """The recipe of published flow matching on small images, for Camelyon17; settings as of wilds."""

    network: NetworkName = "unet"
    """Network to pretrain; else it is that of the base."""
    hidden: int = 128
    """Channels of the first level of the U-Net."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Widths of the levels of a U-Net, in units of --hidden."""
    batch_size: int = 64
    """Rows per step."""
    learning_rate: float = 1e-4
    """Learning rate (Adam) of fine-tuning."""
    base_learning_rate: float = 1e-4
    """Learning rate (Adam) of pretraining."""
    clip: float | None = 1.0
    """Largest norm of the gradient; a longer one is scaled down to it. None for any."""
    averaging: float = 0.9999
    """Decay of the averaged parameters, in [0, 1)."""
    coupling: FineTuningCouplingName = "exact"
    """How noise and data of a batch are paired, within each class."""
    tolerance: float | None = 1e-5
    """Sample by Dopri5 of this relative and absolute tolerance."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of activations, in training and evaluation; parameters stay in float32."""
    flip: bool = True
    """Mirror images of fine-tuning at random, left and right."""
    steps: int = 20_000
    """Steps of fine-tuning, or with --pretrain of pretraining, which takes five times as many."""
    eval_every: int = 2_000
    """Steps between two evaluations on held-out images."""
    held_out: float = 0.1
    """Share of the images that are not trained on."""

    experiment: ClassVar[str] = "camelyon17"

"""SiT-XL/2 on latents of 256 x 256 images: fine-tuning of published weights on latents of your own.

    python -m experiments.import_weights SiT-XL-2-256x256.pt runs/sit-xl
    python -m experiments.train sit-xl --data latents.npz --base runs/sit-xl
    python -m experiments.train sit-xl --data latents.npz --base runs/sit-xl --lora-rank 16 --learning-rate 1e-3

The file holds ``latents`` [num, 32, 32, 4] (or [num, 4, 32, 32] with --layout nchw) in the scale of the weights, for
those of SiT the latents of the Stable Diffusion autoencoder times 0.18215, and ``labels`` in 0 to 999. Batches of 256
in four micro-batches, bfloat16, Adam at 1e-4, gradients clipped to norm 1, averaged parameters with decay 0.9999,
samples by 50 Euler steps with guidance 4. The report shows the first three channels of latents, as colours.

Hardware: one H100 or H200 of 80 GB or more; on 8, `--parallel sharded --fsdp 8`. Expected cost, by the model of
`experiments/scaling` (scaling.md: formulas for this network with a base in bfloat16, not timed on an accelerator): 62
GB at 64 images a micro-batch, about 470 images/s gradual and 600 plain on one H100, so that 20,000 steps take 3 hours
gradual and 2.4 plain; 8 H100 take an eighth. An evaluation of 256 samples with guidance is 6 PFLOP, some 15 seconds.
The base is kept in float32 here, 1.3 GB more than there; adapters alone take less (`python -m experiments.benchmarks
lora`).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.configs.images import Images


@dataclass(frozen=True)
class SitXl(Images):
    """Fine-tune SiT-XL/2 on latents of 256 x 256 images; settings as of images."""

    batch_size: int = 256
    """Rows per step."""
    num_microbatches: int = 4
    """Parts into which the rows of a batch (on each device) are divided, which are differentiated one after another."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of activations, in training and evaluation; parameters stay in float32."""
    averaging: float = 0.9999
    """Decay of the averaged parameters, in [0, 1)."""
    guidance: float = 4.0
    """Scale of classifier-free guidance of the samples; 1 for none."""
    steps: int = 20_000
    """Steps of fine-tuning."""
    eval_every: int = 2_000
    """Steps between two evaluations on held-out latents."""

    experiment: ClassVar[str] = "sit-xl"

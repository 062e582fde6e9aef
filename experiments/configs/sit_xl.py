"""SiT-XL/2 on latents of 256 x 256 images: fine-tuning of published weights on latents of your own.

    python -m experiments.import_weights SiT-XL-2-256x256.pt runs/sit-xl
    python -m experiments.train sit-xl --data latents.npz --base runs/sit-xl
    python -m experiments.train sit-xl --data latents.npz --base runs/sit-xl --lora-rank 16 --learning-rate 1e-3

The file holds ``latents`` [num, 32, 32, 4] (or [num, 4, 32, 32] with --layout nchw) in the scale of the weights, for
those of SiT the latents of the Stable Diffusion autoencoder times 0.18215, and ``labels`` in 0 to 999. Batches of 256
in eight micro-batches, bfloat16 with cuDNN's attention, Adam at 1e-4, gradients clipped to norm 1, averaged parameters
with decay 0.9999, samples by 50 Euler steps with guidance 4. The report shows the first three channels of latents, as
colours.

Hardware: one H100 or H200, of 80 GB or more; on eight, `--parallel sharded --fsdp 8 --num-microbatches 1`. Expected
cost, none of it timed on an accelerator:

* Operations, counted by the compiler in programs with all blocks written out (`python -m experiments.benchmarks sit`):
  238 GFLOP for the forward pass of an image, 718 for an image of a plain step and 955 of a gradual one, forward and
  backward passes and update. That makes 3.7 and 4.9 EFLOP for 20,000 steps. An evaluation is two passes (guidance) for
  each of 50 steps of 256 samples: 6.1 PFLOP, 15 seconds at 40 % of the peak of an H100.
* Memory and time of the training steps alone by the formulas of `experiments/scaling` (scaling.md says what they
  assume; here with a base in float32), attention fused, nothing computed again, in micro-batches of 32 images: 43 GB
  (JAX takes 60 of 80 GB by default; four micro-batches would need 66), 490 images/s gradual and 640 plain on one H100.
  So 20,000 steps take 2.9 hours gradual and 2.2 plain. With `--remat` 22 GB and four fifths of the speed, with
  `--no-fused-attention` 49 GB. On eight H100, 31 GB each and 3,100 to 4,000 images/s gradual, by how much of the
  exchange is hidden.

The 28 blocks are compiled one by one; `--scan` compiles one. Adapters alone take less memory (`python -m
experiments.benchmarks lora`).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.configs.images import Images


@dataclass(frozen=True)
class SitXl(Images):
    """Fine-tune SiT-XL/2 on latents of 256 x 256 images; settings as of images."""

    batch_size: int = 256
    """Rows per step."""
    num_microbatches: int = 8
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

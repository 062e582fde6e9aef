"""Training on a folder of images that are decoded as they are needed, beside the same images in memory.

The images are colour PNG files of 64 x 64 pixels, written by the benchmark: smooth shapes with a little noise, so that
they are packed about as well as photographs. Batches have 64 images, drawn with flips, and the network is an MLP of
the given width. *Ahead* is `gft_jax.pairing.ahead` with four batches. Each entrant takes a block of steps from the
same state; one that is read ahead waits for its first batch, and that is in its time.

Where one processor trains and decodes, the decoding takes its cores away from the training: the ratios that matter
for a training on an accelerator are to be measured there.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from PIL import Image

import gft_jax as gft
from experiments.benchmarks.interleaved import Comparison, Entrant, Outcome, compare, seconds_per_step
from gft_jax.finetuning import TrainState
from gft_jax.loading import init_params
from gft_jax.pairing import Batches
from gft_jax.parallel import Runner
from gft_jax.types import Params

NUM_IMAGES, SIZE, BATCH_SIZE, NUM_STEPS, DEPTH = 512, 64, 64, 20, 4
TITLE = f"Data: {SIZE} x {SIZE} PNG files, batch {BATCH_SIZE}, {DEPTH} batches ahead"


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """Time of a step on decoded images over that on images in memory, and of decoding a batch over that of a step."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), NUM_IMAGES)
        images = gft.data.images(folder)
        in_memory = gft.data.in_memory(images)
        return [outcome for width in widths for outcome in _at(width, images, in_memory, rounds)]


def write_images(folder: Path, number: int) -> None:
    """Images ``[SIZE, SIZE, 3]`` of smooth shapes with noise of a few grey levels, as PNG files."""
    generator = np.random.default_rng(0)
    for index in range(number):
        shapes = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
        smooth = np.asarray(shapes.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(smooth + generator.integers(-2, 3, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04}.png")


def _at(width: int, images: gft.data.ImageFolder, in_memory: np.ndarray, rounds: int) -> list[Outcome]:
    print(f"measuring width {width}", file=sys.stderr)
    seconds = seconds_per_step(entrants(width, images, in_memory), rounds, warm_ups=1)
    per_second = BATCH_SIZE / np.median(seconds["decoding"])
    comparisons = [
        Comparison(f"decoding a batch ({per_second:.0f} images/s) / step in memory", "decoding", "memory"),
        Comparison("step on files / in memory", "files", "memory"),
        Comparison("step on files, ahead / in memory", "files, ahead", "memory"),
        Comparison("step in memory, ahead / in memory", "memory, ahead", "memory"),
    ]
    return [compare(f"width {width}", comparison, seconds) for comparison in comparisons]


def entrants(width: int, images: gft.data.ImageFolder, in_memory: np.ndarray) -> dict[str, Entrant]:
    """Decoding alone, and training on rows in memory and in files, read ahead or not, which ends in the same state."""
    module = gft.networks.ResidualMLP(hidden=width, depth=1)
    params = init_params(module, jax.random.key(0), in_memory.shape[1:])
    objective = gft.objectives.flow_matching(gft.drifts.from_linen(module))
    runner = gft.parallel.single_device(gft.finetuner(objective, optax.adam(1e-3)))

    def decode() -> None:
        for step in range(NUM_STEPS):
            images[gft.pairing.row_order(len(images), BATCH_SIZE, 0, step)]

    made = {"decoding": Entrant(decode, NUM_STEPS)}
    flip = gft.data.horizontal_flip()
    for name, rows in (("memory", in_memory), ("files", images)):
        stream = gft.pairing.batches(rows, batch_size=BATCH_SIZE, seed=0, augment=flip)
        made |= {
            name: _entrant(runner, params, stream, False),
            f"{name}, ahead": _entrant(runner, params, stream, True),
        }
    return made


def _entrant(runner: Runner, params: Params, stream: Batches, in_advance: bool) -> Entrant:
    def run() -> TrainState:
        make: Callable[..., contextlib.AbstractContextManager[Batches]] = (
            gft.pairing.ahead if in_advance else lambda stream, **options: contextlib.nullcontext(stream)
        )
        state = runner.init(jax.random.key(0), params=params)
        with make(stream, depth=DEPTH, num_steps=NUM_STEPS) as batches:
            for step in range(NUM_STEPS):
                state, _ = runner.step(state, None, batches.batch(step))
        return jax.block_until_ready(state)

    return Entrant(run, NUM_STEPS)

"""The page of the study."""

from collections.abc import Sequence
from pathlib import Path

from experiments.files import write_atomically
from experiments.scaling import tables
from experiments.scaling.checks import Check, worst
from experiments.scaling.hardware import DEVICES_PER_NODE, H100, H200
from experiments.scaling.plans import best
from experiments.scaling.step_time import UPDATE_TRAFFIC, images_per_second, share_of_peak
from experiments.scaling.training import LOOP, STATE, UPDATE, Setting, memory
from experiments.scaling.transformer import (
    ALL,
    PRODUCTS,
    SIT_4B_2,
    SIT_XL_2,
    Transformer,
    forward_flops,
    kept_bytes,
    parameters,
)

IMAGES = 1024
"""Of a batch, where it is the same for every number of devices."""
ON_EACH = 64
"""Images on each device, where the batch grows with their number."""


def chosen(shape: Transformer, number: int, images: int, gradual: bool = True) -> Setting:
    """The best setting on so many H100, which must exist."""
    setting = best(shape, H100, number, images, gradual)
    if setting is None:
        raise ValueError(f"{shape.name} does not fit on {number} {H100.name}")
    return setting


def summary(checks: Sequence[Check]) -> str:
    """What the tables say, in words."""
    one, node = (chosen(SIT_XL_2, number, IMAGES) for number in (1, 8))
    plain = chosen(SIT_XL_2, 8, IMAGES, gradual=False)
    many, wide = chosen(SIT_XL_2, 512, IMAGES), chosen(SIT_XL_2, 512, 512 * ON_EACH)
    whole, by_layer = (
        memory(
            Setting(SIT_4B_2, H100, DEVICES_PER_NODE, DEVICES_PER_NODE, 16, 2, PRODUCTS, by_layer=each)
        ).total
        / 1e9
        for each in (False, True)
    )
    copy = memory(Setting(SIT_4B_2, H100, 1, 1, 1, 1, PRODUCTS)).total / 1e9
    enough = [tables.enough_images(shape, H100, DEVICES_PER_NODE) for shape in (SIT_XL_2, SIT_4B_2)]
    rate = {
        name: images_per_second(each)[0] for name, each in (("one", one), ("node", node), ("plain", plain))
    }
    # Checks of what was read off here say nothing of the formulas.
    derived = [check for check in checks if "read off" not in check.note]
    return f"""* **A gradual step costs a forward pass of the base more than a plain one**: 4/3 of its arithmetic. On 8
  H100 the model gives {rate["node"]:,.0f} images/s for SiT-XL/2, {rate["node"] / rate["plain"]:.2f} of the
  {rate["plain"]:,.0f} of plain fine-tuning (3/4 by arithmetic alone; the update is the same).
* **SiT-XL/2 fits on one device** with copies of everything ({memory(one).total / 1e9:.0f} GB at
  {one.images // one.num_microbatches} images a micro-batch). Eight H100 of a node give
  {rate["node"] / rate["one"]:.1f} times the images of one, none of the collectives hidden.
* **The 4 B model does not fit as a copy on an H100** ({copy:.0f} GB with one image). Split over a node by this
  library, which gathers the parameters of all layers at once, it takes {whole:.0f} GB at 8 images a micro-batch;
  gathered layer by layer it would take {by_layer:.0f} GB. Where a table says *by layer*, this library cannot do it
  yet.
* **Several nodes are bound by the network unless each device has work enough**: {enough[0]} images a device for
  SiT-XL/2 and {enough[1]} for the 4 B model (64 H100, parameters split inside the node) take as long as the
  collectives. 512 H100 on one batch of {IMAGES:,} reach {share_of_peak(many):.0%} of their peak; with {ON_EACH}
  images on each, {share_of_peak(wide):.0%}.
* **An H200 is an H100 with more memory**: larger micro-batches, less computed again, less time waiting for memory;
  the arithmetic and the links are the same.
* {len(checks)} numbers of the formulas were measured here; those that were derived agree within
  {worst(derived):.1%}. **None of it was timed on an accelerator**: the seconds are those of a roofline, and rest on
  three assumed fractions."""


def assumptions() -> str:
    """Hardware, models and training step."""
    devices = tables.markdown(
        (
            "device",
            "bf16, TFLOP/s",
            "memory, GB",
            "memory, TB/s",
            "NVLink each way, GB/s",
            "network each way, GB/s",
        ),
        [
            [
                each.name,
                f"{each.flops / 1e12:.0f}",
                f"{each.memory / 1e9:.0f}",
                f"{each.memory_rate / 1e12:.2f}",
                f"{each.nvlink_rate / 1e9:.0f}",
                f"{each.network_rate / 1e9:.0f}",
            ]
            for each in (H100, H200)
        ],
    )
    models = tables.markdown(
        ("model", "depth", "width", "heads", "tokens", "parameters, M", "forward pass of an image, GFLOP"),
        [
            [
                each.name,
                str(each.depth),
                str(each.width),
                str(each.heads),
                str(each.tokens),
                f"{parameters(each) / 1e6:,.1f}",
                f"{forward_flops(each) / 1e9:,.1f}",
            ]
            for each in (SIT_XL_2, SIT_4B_2)
        ],
    )
    return f"""{devices}
Peaks are NVIDIA's (data sheets of H100 and H200, dense; a 400 Gb/s adapter for each device, eight devices
a node). Counted on are {H100.products_reached:.0%} of the arithmetic in matrix products, {H100.memory_reached:.0%}
of the memory's rate, {H100.links_reached:.0%} of the links', and {H100.memory_usable:.0%} of the memory. These
fractions are assumptions; what they are worth is in a table below.

{models}
Blocks are DiT's (arXiv:2212.09748) with adaLN, MLP ratio 4, patches of 2 x 2: SiT-XL/2 (arXiv:2401.08740)
on latents of 256 x 256 pixels, and a model of 4 billion parameters on latents of 512 x 512, made up for this page.

The step is this library's: Adam, averaged parameters, all state in float32 ({STATE} bytes a parameter), a base in
bfloat16, computation in bfloat16, attention fused. At its peak the update holds {UPDATE} bytes a parameter besides
the state, since the guard keeps the old state until all new values are known to be finite; it moves
{UPDATE_TRAFFIC} bytes a parameter. *A copy each* is `parallel.pmapped`: gradients are added up once a step, however
many the micro-batches. *fsdp=n* is `parallel.sharded` on `mesh(fsdp=n)`: parameters and base are gathered once a
step and are whole while any layer needs them, and gradients are added up once a micro-batch. A loop over
micro-batches then holds {LOOP} bytes a parameter more.

A collective over several nodes first works inside each node. The backward pass takes twice the forward pass. An
operation takes as long as its arithmetic or its bytes need, whichever is more; everything between two products is
one pass over memory."""


def text(checks: Sequence[Check]) -> str:
    """The page in Markdown.

    Args:
        checks: what was measured.
    """
    both = (SIT_XL_2, SIT_4B_2)
    sections = []
    for shape in both:
        sections.append(f"""## {shape.name}

A batch of {IMAGES:,} images, however many the devices:

{tables.throughput(shape, IMAGES, on_each=False)}
{ON_EACH} images on each device:

{tables.throughput(shape, ON_EACH, on_each=True)}
Memory in GB a device at its peak, on 64 devices:

{tables.memory_table(shape, 16)}""")
    models = "\n".join(sections)
    return f"""# Scaling: one accelerator to 512

    python -m experiments.scaling

Memory and time of a training step of gradual and of plain fine-tuning, by formulas, for H100 and H200. What the
formulas say of programs compiled for a processor is checked at the end.

{summary(checks)}

## What is assumed

{assumptions()}

{models}
*images/s*: first with no collective hidden behind the work, then with as many as it can hide. *kept*: what
the forward pass leaves for the backward pass, below. *share of peak* counts the operations that the method needs,
none of the collectives hidden. *most time* is what the largest part of a step waits for. For each row the fastest
setting that fits was taken. The memory of the last four parts is that of the moment when most is needed: in the
backward pass, or in the update.

## What is kept for the backward pass

{tables.kept_table(both)}
*all* is what `jax.grad` asks for; a compiler may keep less. *products* is
`jax.checkpoint` of a block with the policy `dots_with_no_batch_dims_saveable`, *inputs* without one. The blocks are
to be wrapped one by one (`flax.linen.remat`): a network that is wrapped as a whole, without a policy, is computed
again as a whole, and then holds everything.

## Collectives

A gradual step on 64 H100, a single micro-batch:

{tables.collectives_table(both)}
The last column is where work and collectives take equally long: with fewer images
the network decides, whatever is hidden.

## When to do what

* **A copy on each device** as long as it fits with room for a micro-batch: it sends least.
* **fsdp inside the node** when it does not, or to save the update's time and memory: it sends as much over the
  network, and more over NVLink, which is {H100.nvlink_rate / H100.network_rate:.0f} times as fast.
* **fsdp over all devices** when that does not fit either. Here it gains little over a node, since what is gathered
  is whole in both.
* **Keep products** before more micro-batches: {kept_bytes(SIT_XL_2, PRODUCTS) / kept_bytes(SIT_XL_2, ALL):.0%} of
  the memory for a few passes over memory. Keep inputs when that is too much: a forward pass more.
* **Micro-batches** to reach a batch that memory does not allow, or one whose work hides the collectives. With
  copies they cost little; under `parallel.sharded` each adds up the gradients again.
* **More devices on the same batch** only while each has the images of the table above.

## What the assumed fractions are worth

SiT-XL/2, a batch of {IMAGES:,}, on 8 H100 and on 64:

{tables.sensitivity_table(SIT_XL_2, IMAGES, 8)}
{tables.sensitivity_table(SIT_XL_2, IMAGES, 64)}
## Checked here

{tables.checks_table(checks)}
All by XLA for a processor: its cost and memory analysis, the text of compiled
programs, and eight fake devices, which hold and exchange what eight real ones would. bfloat16 is emulated there, so
that memory is compared in float32.

## What this leaves out

* No second of it was measured on an accelerator, and XLA compiles for one otherwise than for a processor: it fuses
  more, turns an all-reduce and a slice into a reduce-scatter (assumed above; the processor's compiler does not),
  may move collectives out of the loop over micro-batches, and schedules them beside the work, or not.
* Nothing of latencies: 512 devices wait for the slowest, and many small collectives take longer than their bytes.
* No kernels' sizes and tails: a few images on a device do not reach the assumed fractions.
* No data, coupling, encoder of images, checkpoints, evaluation; no tensor or pipeline parallelism; no low-rank
  adapters.
* {UPDATE} bytes of the update and {LOOP} of the loop were read off programs compiled here, for a small model, and
  need not hold on a GPU."""


def write(path: Path, checks: Sequence[Check]) -> None:
    """Writes the page."""
    write_atomically(path, text(checks) + "\n")

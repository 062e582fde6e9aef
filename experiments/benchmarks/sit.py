"""SiT: what the compiler counts of its steps, and how near they come to the machine's own matrix products.

The operations of a timed step are those of its matrix products (`experiments.scaling.transformer`): three forward
passes of a plain step, four of a gradual one, whatever a rematerialisation computes again.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gft_jax as gft
from experiments.benchmarks import sit_steps
from experiments.benchmarks.interleaved import Entrant, seconds_per_step
from experiments.scaling.hardware import H100, H200
from experiments.scaling.transformer import Transformer, forward_flops
from gft_jax.networks import SiT

TITLE = "SiT at 256 x 256 pixels (latents 32 x 32 x 4)"
HEAD = ("what", "found", "quartiles", "asked", "met")
PASSES: dict[sit_steps.Method, int] = {"plain": 3, "gradual": 4}
PUBLISHED_FLOPS = 237e9
"""Of SiT-XL/2 for an image: 118.6 Gflops in the DiT paper (arXiv:2212.09748), which count a multiply-add once."""
BATCHES = (8, 32, 128)
CPU_BATCH, GPU_BATCH = 16, 32
CPU_SHARE = 0.45
_SIDE = 2048
_PRODUCTS = 10


class Finding(NamedTuple):
    """A number, and what is asked of it."""

    what: str
    found: float
    unit: str = ""
    between: tuple[float, float] | None = None
    """What is asked; None where nothing is."""
    quartiles: tuple[float, float] | None = None
    """Of numbers measured by rounds, whose median was found."""

    def met(self) -> bool | None:
        """Whether it is as asked; None where nothing is."""
        return None if self.between is None else self.between[0] <= self.found <= self.between[1]


def measure(rounds: int, quick: bool) -> Iterator[Finding]:
    """All findings: what is counted, what is compiled, and what is timed on the device there is.

    Args:
        rounds: rounds of the timed programs.
        quick: steps of SiT-S/2 and small batches alone, to see that all of it runs.
    """
    print("counting operations", file=sys.stderr)
    yield from counted()
    for batch_size in BATCHES[:1] if quick else BATCHES:
        print(f"compiling batch {batch_size}", file=sys.stderr)
        yield from compiled("S/2" if quick else "XL/2", batch_size)
    print("timing", file=sys.stderr)
    if jax.default_backend() == "gpu":
        yield from timed_on_gpu(sit_steps.network("XL/2", fused_attention=True), GPU_BATCH, rounds)
    else:
        # A loop: where the blocks are written out, XLA on CPU computes the sum of all blocks before again in each.
        yield from timed_on_cpu(sit_steps.network("S/2", scan=True), 1 if quick else CPU_BATCH, rounds)


def counted() -> Iterator[Finding]:
    """Operations of a forward pass from the compiler's cost analysis; no weight is made."""
    forward = sit_steps.forward_cost(sit_steps.network("XL/2"))
    asked = (0.97 * PUBLISHED_FLOPS / 1e9, 1.03 * PUBLISHED_FLOPS / 1e9)
    yield Finding("SiT-XL/2, forward pass of an image", forward.flops / 1e9, "GFLOP", asked)


def compiled(size: str, batch_size: int) -> Iterator[Finding]:
    """Operations, traffic and peak memory of steps in bfloat16 with float32 state; no weight is made either."""
    module = sit_steps.network(size)
    flops = {method: sit_steps.step_cost(module, method, batch_size, jnp.bfloat16).flops for method in PASSES}
    name = f"SiT-{size}, batch {batch_size}"
    yield Finding(f"{name}: plain step", flops["plain"] / 1e9 / batch_size, "GFLOP an image")
    ratio = flops["gradual"] / flops["plain"]
    yield Finding(f"{name}: gradual / plain step, operations", ratio, "", (0.95 * 4 / 3, 1.05 * 4 / 3))
    for method in PASSES:
        cost = sit_steps.step_cost(module.clone(remat=True), method, batch_size, jnp.bfloat16)
        setting = f"{name}: {method} step, bfloat16, rematerialised"
        yield Finding(f"{setting}: peak memory", cost.peak_bytes / 2**30, "GiB")
        yield Finding(f"{setting}: bytes accessed", cost.bytes_accessed / 1e9, "GB")


def timed_on_cpu(module: SiT, batch_size: int, rounds: int) -> Iterator[Finding]:
    """Operations a second of steps in float32, as shares of those of the machine's own matrix products."""
    seconds = seconds_per_step(
        {"products": _products()} | _entrants(module, batch_size, jnp.float32), rounds, warm_ups=1
    )
    rate = 2 * _SIDE**3 / seconds["products"]
    yield _timed(f"float32 matrix products of {_SIDE} x {_SIDE}", rate / 1e9, "GFLOP/s")
    for method in PASSES:
        share = _operations(module, method, batch_size) / seconds[method] / rate
        name = f"SiT of width {module.hidden_size}, {method} step, float32, batch {batch_size}"
        yield _timed(f"{name}: share of that", share, "", (CPU_SHARE, 1.0) if method == "plain" else None)
        yield _timed(f"{name}: images", batch_size / seconds[method], "1/s")


def timed_on_gpu(module: SiT, batch_size: int, rounds: int) -> Iterator[Finding]:
    """Images a second of steps in bfloat16 with fused attention, and the share of the device's peak."""
    kind = jax.local_devices()[0].device_kind
    known = [hardware for hardware in (H100, H200) if hardware.name in kind]
    seconds = seconds_per_step(_entrants(module, batch_size, jnp.bfloat16), rounds, warm_ups=2)
    for method in PASSES:
        name = f"SiT of width {module.hidden_size}, {method} step, bfloat16, batch {batch_size}, {kind}"
        yield _timed(f"{name}: images", batch_size / seconds[method], "1/s")
        rate = _operations(module, method, batch_size) / seconds[method]
        yield _timed(f"{name}: rate", rate / 1e12, "TFLOP/s")
        for hardware in known:
            yield _timed(f"{name}: share of peak", rate / hardware.flops, "")


def cells(finding: Finding) -> list[str]:
    """A row below `HEAD`."""
    quartiles = "" if finding.quartiles is None else " - ".join(f"{each:.4g}" for each in finding.quartiles)
    asked = "" if finding.between is None else " to ".join(f"{each:.4g}" for each in finding.between)
    met = {True: "yes", False: "NO", None: ""}[finding.met()]
    return [finding.what, f"{finding.found:.4g} {finding.unit}".strip(), quartiles, asked, met]


def _operations(module: SiT, method: sit_steps.Method, batch_size: int) -> float:
    height, _, channels = sit_steps.EVENT_SHAPE
    shape = Transformer(
        "",
        module.depth,
        module.hidden_size,
        module.num_heads,
        height,
        module.patch_size,
        channels,
        channels * (2 if module.learn_sigma else 1),
    )
    return PASSES[method] * batch_size * forward_flops(shape)


def _timed(what: str, values: np.ndarray, unit: str, between: tuple[float, float] | None = None) -> Finding:
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Finding(what, median, unit, between, (lower, upper))


def _products() -> Entrant:
    matrix = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE))
    multiply = jax.jit(jnp.matmul)

    def run() -> None:
        for _ in range(_PRODUCTS):
            jax.block_until_ready(multiply(matrix, matrix))

    return Entrant(run, _PRODUCTS)


def _entrants(module: SiT, batch_size: int, dtype: Any) -> dict[str, Entrant]:
    batch = sit_steps.batch_of(batch_size)
    base = sit_steps.params_of(module)

    def training(method: sit_steps.Method) -> Entrant:
        runner = gft.parallel.single_device(sit_steps.tuner_of(module, method, dtype))
        base_params = None if method == "plain" else base
        state = runner.init(jax.random.key(0), base_params, base)

        def run() -> None:
            nonlocal state
            state, _ = runner.step(state, base_params, batch)
            jax.block_until_ready(state)

        return Entrant(run, 1)

    return {method: training(method) for method in PASSES}

"""Training steps of SiT: as programs that are only compiled, without weights, and as programs that run."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

import gft_jax as gft
from gft_jax.loading import init_params
from gft_jax.networks import SiT

EVENT_SHAPE = (32, 32, 4)
"""Latents of images of 256 x 256 pixels."""
NUM_CLASSES = 1000
LEARNING_RATE = 1e-4
AVERAGING = 0.9999

Method = Literal["plain", "gradual"]


class Cost(NamedTuple):
    """What the compiler says of a program."""

    flops: float
    """Floating-point operations."""
    bytes_accessed: float
    """Bytes read and written, each operation's (after fusion) for itself."""
    peak_bytes: float
    """Largest memory: arguments, results that do not take their place, and temporaries."""


def network(size: str, **fields: Any) -> SiT:
    """SiT as published: 1000 classes, twice the output channels."""
    return SiT.preset(size, num_classes=NUM_CLASSES, learn_sigma=True, **fields)


def tuner_of(module: SiT, method: Method, dtype: DTypeLike = jnp.float32) -> gft.FineTuner:
    """Flow matching, or gradual fine-tuning while it cools; Adam and averaged parameters in float32."""
    drift = gft.drifts.from_linen(module)
    if dtype != jnp.float32:
        drift = gft.drifts.in_precision(drift, dtype)
    optimizer = optax.adam(LEARNING_RATE)
    if method == "plain":
        return gft.finetuner(gft.objectives.flow_matching(drift), optimizer, averaging=AVERAGING)
    # A schedule, not a constant: at a constant temperature XLA could drop the base.
    cooling = gft.cooling.linear(target_weight=(0.05, 1.0), num_steps=10_000_000)
    return gft.finetuner(gft.objectives.gradual(drift), optimizer, cooling, averaging=AVERAGING)


def batch_of(batch_size: int) -> gft.Batch:
    """Noise, latents as noise, and labels."""
    key_x0, key_x1, key_label, key_rows = jax.random.split(jax.random.key(0), 4)
    shape = (batch_size, *EVENT_SHAPE)
    return gft.Batch(
        x0=jax.random.normal(key_x0, shape),
        x1=jax.random.normal(key_x1, shape),
        key=jax.random.split(key_rows, batch_size),
        cond=jax.random.randint(key_label, (batch_size,), 0, NUM_CLASSES),
    )


def params_of(module: SiT) -> Any:
    """Random parameters, none of them zero, as the modulations and the last layer are at the start."""
    fresh = init_params(module, jax.random.key(0), EVENT_SHAPE)
    return jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 0.02, tree), donate_argnums=0)(fresh)


def forward_cost(module: SiT) -> Cost:
    """Cost of one evaluation for one image in float32; the blocks must be written out, since a loop counts once."""
    like = jax.eval_shape(lambda: init_params(module, jax.random.key(0), EVENT_SHAPE))
    row = jax.eval_shape(lambda: batch_of(1))
    return _cost(lambda params, x, cond: module.apply({"params": params}, x[:, 0, 0, 0], x, cond))(
        like, row.x1, row.cond
    )


def step_cost(module: SiT, method: Method, batch_size: int, dtype: DTypeLike) -> Cost:
    """Cost of a compiled step whose state takes the place of the old one.

    The blocks are written out for operations and bytes, which a loop counts once. Both are linear in the number of
    blocks, which are alike, and are taken from programs with one and with two: XLA on CPU takes minutes to compile 28.
    The peak is that of the whole network, with its blocks in a loop.
    """
    one, two = (
        _compiled_step(module.clone(depth=depth, scan=False), method, batch_size, dtype) for depth in (1, 2)
    )
    whole = _compiled_step(module.clone(scan=True), method, batch_size, dtype)

    def extended(first: float, second: float) -> float:
        return first + (module.depth - 1) * (second - first)

    return Cost(
        extended(one.flops, two.flops),
        extended(one.bytes_accessed, two.bytes_accessed),
        whole.peak_bytes,
    )


def _compiled_step(module: SiT, method: Method, batch_size: int, dtype: DTypeLike) -> Cost:
    step, arguments = _step(tuner_of(module, method, dtype), method, module, batch_size)
    return _cost(step, donate_argnums=0)(*arguments)


def _step(
    tuner: gft.FineTuner, method: Method, module: SiT, batch_size: int
) -> tuple[Callable[..., Any], Any]:
    """The step, and the shapes of its arguments in place of arrays."""

    def start(key: Any) -> Any:
        params = init_params(module, key, EVENT_SHAPE)
        base_params = None if method == "plain" else params
        return tuner.init(key, base_params, params), base_params

    state, base_params = jax.eval_shape(start, jax.random.key(0))
    return tuner.step, (state, base_params, jax.eval_shape(lambda: batch_of(batch_size)))


def _cost(program: Callable[..., Any], **options: Any) -> Callable[..., Cost]:
    def of(*arguments: Any) -> Cost:
        compiled = jax.jit(program, **options).lower(*arguments).compile()
        analysis: Any = compiled.cost_analysis()
        memory: Any = compiled.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
        return Cost(float(analysis["flops"]), float(analysis["bytes accessed"]), float(peak))

    return of

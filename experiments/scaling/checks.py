"""What of the formulas can be measured on this machine: programs as XLA compiles them for its processor."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import ShapeDtypeStruct

import gft_jax as gft
from experiments.scaling.network import Block, Network
from experiments.scaling.training import STATE, UPDATE
from experiments.scaling.transformer import (
    ALL,
    INPUTS,
    PRODUCTS,
    SIT_4B_2,
    SIT_XL_2,
    Kept,
    Transformer,
    forward_flops,
    kept_bytes,
    parameters,
)
from gft_jax.types import Batch

SMALL = Transformer("depth 4, width 128", depth=4, width=128, heads=4, image=16, classes=15)
PUBLISHED = 675_129_632
"""Parameters of DiT-XL/2 and SiT-XL/2 in their authors' code, the table of positions among them."""
NUM_DEVICES = 8


class Check(NamedTuple):
    """A number of the formulas beside the measured one."""

    what: str
    predicted: float
    measured: float
    unit: str = ""
    note: str = ""

    @property
    def ratio(self) -> float:
        """Measured by predicted."""
        return self.measured / self.predicted


def abstract_batch(shape: Transformer, images: int) -> Batch:
    """Shapes of a batch with labels."""

    def batch() -> Batch:
        x = jnp.zeros((images, shape.image, shape.image, shape.channels))
        return Batch(x, x, jax.random.split(jax.random.key(0), images), jnp.zeros(images, jnp.int32))

    return jax.eval_shape(batch)


def abstract_params(network: Network) -> Any:
    """Shapes of the parameters."""
    x = jnp.zeros((1, network.shape.image, network.shape.image, network.shape.channels))
    return jax.eval_shape(lambda key: network.init(key, jnp.zeros(1), x)["params"], jax.random.key(0))


def forward(network: Network, images: int) -> Any:
    """The lowered forward pass."""
    batch = abstract_batch(network.shape, images)
    t = ShapeDtypeStruct((images,), jnp.float32)
    apply = jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs))
    return apply.lower(abstract_params(network), t, batch.x0, batch.cond)


def step(network: Network, images: int, gradual: bool) -> Any:
    """The lowered training step of the library, with float32 parameters and base."""
    drift = gft.drifts.from_linen(network)
    objective = gft.objectives.gradual(drift) if gradual else gft.objectives.flow_matching(drift)
    tuner = gft.finetuner(objective, optax.adam(1e-4), gft.cooling.constant(temperature=1.0))
    params = abstract_params(network)
    state = jax.eval_shape(tuner.init, jax.random.key(0), params)
    jitted = jax.jit(lambda *args: tuner.step(*args), donate_argnums=0)
    return jitted.lower(state, params if gradual else None, abstract_batch(network.shape, images))


def operation_checks() -> Iterator[Check]:
    """Parameters and operations, of the large models without compiling them."""
    for shape in (SIT_XL_2, SIT_4B_2):
        counted = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(Network(shape))))
        yield Check(f"parameters of {shape.name}", parameters(shape), counted, "", "Flax, shapes alone")
    positions = SIT_XL_2.tokens * SIT_XL_2.width
    yield Check(
        "parameters of SiT-XL/2 with its positions",
        parameters(SIT_XL_2) + positions,
        PUBLISHED,
        "",
        "the authors' number",
    )
    note = "lowered, not compiled; XLA counts norms, softmax and GELU too"
    flops = forward(Network(SIT_XL_2), 1).cost_analysis()["flops"]
    yield Check("forward pass of SiT-XL/2, an image", forward_flops(SIT_XL_2), flops, "FLOP", note)
    small = forward(Network(SMALL), 8)
    predicted = 8 * forward_flops(SMALL)
    compiled = small.compile().cost_analysis()["flops"]
    yield Check(f"forward pass, {SMALL.name}, 8 images", predicted, compiled, "FLOP", "compiled")
    plain, gradual = (step(Network(SMALL), 8, each).cost_analysis()["flops"] for each in (False, True))
    lowered = small.cost_analysis()["flops"]
    yield Check("plain step / forward pass", 3, plain / lowered, "", "lowered; with optimiser and average")
    yield Check("gradual step / plain step", 4 / 3, gradual / plain, "", "lowered")


def _rematerialised(kept: Kept, function: Any) -> Any:
    if kept.policy is None:
        return function
    return jax.checkpoint(
        function, policy=getattr(jax.checkpoint_policies, kept.policy) if kept.policy else None
    )


def kept_checks() -> Iterator[Check]:
    """What a block keeps: growth of the compiled temporaries with the number of blocks, in a loop over them."""
    images = 16
    embedding = jnp.zeros((images, SMALL.width))
    h = jnp.zeros((images, SMALL.tokens, SMALL.width))
    block = Block(SMALL, jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), h, embedding)
    for kept in (ALL, PRODUCTS, INPUTS):
        apply = _rematerialised(kept, block.apply)

        def loss(params: Any, h: Any, apply: Any = apply) -> Any:
            out, _ = jax.lax.scan(lambda h, params: (apply(params, h, embedding), None), h, params)
            return jnp.sum(out**2)

        sizes = []
        for depth in (4, 8):
            stacked = jax.tree.map(
                lambda leaf, n=depth: ShapeDtypeStruct((n, *leaf.shape), leaf.dtype), params
            )
            compiled = jax.jit(jax.grad(loss)).lower(stacked, h).compile()
            analysis: Any = compiled.memory_analysis()
            sizes.append(analysis.temp_size_in_bytes)
        predicted = images * kept_bytes(SMALL, kept, itemsize=4, fused_attention=False)
        yield Check(f"kept by a block: {kept.name}", predicted, (sizes[1] - sizes[0]) / 4, "byte", "float32")
    block, h, embedding = Block(SMALL, jnp.bfloat16), h.astype(jnp.bfloat16), embedding.astype(jnp.bfloat16)
    residuals = jax.eval_shape(lambda params: jax.vjp(block.apply, params, h, embedding)[1], params)
    tokens = [leaf for leaf in jax.tree.leaves(residuals) if leaf.size >= h.size]
    asked = sum(leaf.size * leaf.dtype.itemsize for leaf in tokens)
    predicted = images * kept_bytes(SMALL, ALL, fused_attention=False)
    yield Check(
        f"kept by a block: {ALL.name}", predicted, asked, "byte", "bfloat16; as jax.vjp asks, not compiled"
    )


def step_memory_checks() -> Iterator[Check]:
    """State and transient memory of a step of the library where activations are few: one image of four tokens."""
    shape = SMALL._replace(image=4)
    size = parameters(shape)
    for gradual in (False, True):
        compiled = step(Network(shape), 1, gradual).compile().memory_analysis()
        name, held = ("gradual", STATE + 4) if gradual else ("plain", STATE)
        yield Check(
            f"{name} step, state" + " and base" * gradual,
            held,
            compiled.argument_size_in_bytes / size,
            "byte / parameter",
        )
        yield Check(
            f"{name} step, transient",
            UPDATE,
            compiled.temp_size_in_bytes / size,
            "byte / parameter",
            "read off here, then used",
        )
        yield Check(
            f"{name} step, state written in place",
            STATE,
            compiled.alias_size_in_bytes / size,
            "byte / parameter",
        )


def device_checks(names: tuple[str, ...] = ("fsdp", "both", "mapped")) -> Iterator[Check]:
    """Bytes on each of eight fake devices, and bytes through collectives, in the library's own forms.

    Args:
        names: forms of `experiments.scaling.devices`.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={NUM_DEVICES}"
    with tempfile.TemporaryDirectory() as dumped:
        environment = os.environ | {
            "NPROC": str(4 * NUM_DEVICES),  # with fewer threads fake devices wait for each other for ever
            "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0 --xla_dump_to={dumped}",
            "JAX_PLATFORMS": "cpu",
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a program from the cache leaves no text
        done = subprocess.run(
            [sys.executable, "-m", "experiments.scaling.devices", *names],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=Path(__file__).parents[2],
        )
    if done.returncode:
        raise RuntimeError(f"experiments.scaling.devices failed:\n{done.stderr[-3000:]}")
    for line in done.stdout.splitlines():
        yield Check(**json.loads(line))


def all_checks() -> list[Check]:
    """Every check, some two minutes."""
    parts = (operation_checks, kept_checks, step_memory_checks, device_checks)
    return [check for part in parts for check in part()]


def worst(checks: list[Check]) -> float:
    """Largest relative difference."""
    return float(np.max([abs(check.ratio - 1) for check in checks]))

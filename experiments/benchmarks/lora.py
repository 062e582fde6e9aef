"""Memory of a gradual step of SiT, of all parameters and of low-rank adapters, as the compiler counts it.

Both with Adam, averaged parameters, rematerialised blocks in a loop, and float32 throughout; adapters of all kernels in
the blocks, on the side of the activations. Next to the state there is what a step reads besides (base and batch) and
the temporaries, among them the gradient.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import gft_jax as gft
from gft_jax.loading import init_params
from gft_jax.networks import SiT
from gft_jax.networks.lora import LowRank, low_rank

TITLE = "Memory of a gradual step: all parameters, and low-rank adapters"
HEAD = (
    "network",
    "batch",
    "trained",
    "parameters",
    "base",
    "state",
    "temporaries",
    "total",
    "of full",
    "asked",
    "met",
)
EVENT_SHAPE = (32, 32, 4)
AT_MOST = 0.6
"""What is asked of the adapters' memory, as a share of that of all parameters."""
_SIZES = ("B/2", "XL/2")
_BATCHES = (4, 32)
_RANK = 16


class Memory(NamedTuple):
    """Memory of one step, in bytes."""

    size: str
    batch_size: int
    trained: str
    num_trained: int
    """Number of trained parameters."""
    base: int
    state: int
    temporaries: int
    total: int
    """Arguments, results that do not take their place, and temporaries."""
    of_full: float
    """Total, as a share of that of all parameters."""


def measure(quick: bool) -> Iterator[Memory]:
    """The steps of all sizes and batches; quick: of the smallest alone."""
    for size in ("S/2",) if quick else _SIZES:
        for batch_size in _BATCHES[: 1 if quick else None]:
            print(f"compiling SiT-{size}, batch {batch_size}", file=sys.stderr)
            yield from memory(size, batch_size)


def memory(size: str, batch_size: int) -> list[Memory]:
    """Of the step of all parameters, and of that of adapters."""
    module = SiT.preset(size, num_classes=1000, learn_sigma=True, remat=True, scan=True)
    adapted = low_rank(["blocks/*"], rank=_RANK, stacked=["blocks/*"])
    full = _memory(module, None, size, batch_size)
    ours = _memory(module, adapted, size, batch_size)
    return [full, ours._replace(of_full=ours.total / full.total)]


def cells(found: Memory) -> list[str]:
    """A row below `HEAD`."""
    is_full = found.of_full == 1.0
    sizes = [
        f"{number / 2**30:.2f} GiB" for number in (found.base, found.state, found.temporaries, found.total)
    ]
    asked = "" if is_full else f"< {AT_MOST}"
    met = "" if is_full else "yes" if found.of_full < AT_MOST else "NO"
    trained = f"{found.num_trained / 1e6:.1f} M"
    return [
        f"SiT-{found.size}",
        str(found.batch_size),
        found.trained,
        trained,
        *sizes,
        f"{found.of_full:.2f}",
        asked,
        met,
    ]


def _memory(module: SiT, adapted: LowRank | None, size: str, batch_size: int) -> Memory:
    drift = gft.drifts.from_linen(module)
    tuner = gft.finetuner(
        gft.objectives.gradual(drift if adapted is None else adapted.on_activations(drift)),
        optax.adam(1e-4),
        # A schedule, since at a temperature that is known XLA could leave out what it makes superfluous.
        gft.cooling.linear(target_weight=(0.05, 1.0), num_steps=10_000),
        adapter=None if adapted is None else adapted.adapter,
    )

    def start(key: Any) -> Any:
        base = init_params(module, key, EVENT_SHAPE)
        x = jnp.zeros((batch_size, *EVENT_SHAPE))
        batch = gft.Batch(x, x, jax.random.split(key, batch_size), jnp.zeros(batch_size, int))
        return tuner.init(key, base), base, batch

    state, base, batch = jax.eval_shape(start, jax.random.key(0))
    compiled = jax.jit(tuner.step, donate_argnums=0).lower(state, base, batch).compile()
    found: Any = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        size,
        batch_size,
        "all" if adapted is None else f"adapters, rank {adapted.settings.rank}",
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        _bytes(base),
        _bytes(state),
        found.temp_size_in_bytes,
        found.argument_size_in_bytes + results + found.temp_size_in_bytes,
        1.0,
    )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

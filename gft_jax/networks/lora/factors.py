"""What adapts parameters: factors of low-rank updates, and whole differences; which parameters get them."""

import math
import numbers
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gft_jax.networks.leaf_names import checked_patterns, listed, matching, named_leaves


class Factors(NamedTuple):
    """Factors of the update ``alpha / rank * A B`` of one kernel."""

    a: Array
    """A ``[*layers, *inputs, parts * rank]``; starts at N(0, 1 / size of inputs)."""
    b: Array
    """B ``[*layers, rank, outputs]``; starts at zero."""


class Difference(NamedTuple):
    """What is added to a parameter that is trained whole."""

    delta: Array
    """In the shape of the parameter; starts at zero."""


class Settings(NamedTuple):
    """What `low_rank` was given, checked."""

    patterns: tuple[str, ...]
    rank: int
    alpha: float
    stacked: tuple[str, ...]
    parts: dict[str, int]
    whole: tuple[str, ...]

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank


class Kernel(NamedTuple):
    """How the shape of a kernel is read: ``[*layers, *inputs, outputs]``."""

    layers: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: int
    parts: int


def checked_settings(
    patterns: Any,
    rank: Any,
    alpha: float | None,
    stacked: Any,
    parts: Mapping[str, int] | None,
    whole: Any,
) -> Settings:
    """Settings that make sense by themselves; whether they fit the parameters, `kernels_of` says.

    Raises:
        ValueError: for no patterns, a rank or number of parts below one, or an alpha that is not positive and finite.
    """
    patterns = checked_patterns("patterns", patterns)
    if not patterns:
        raise ValueError('patterns is empty: name the kernels to adapt, such as ["*/qkv/kernel"]')
    rank = _count("rank", rank)
    alpha = float(rank if alpha is None else alpha)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    parts = {pattern: _count(f"parts[{pattern!r}]", count) for pattern, count in (parts or {}).items()}
    stacked, whole = checked_patterns("stacked", stacked), checked_patterns("whole", whole)
    return Settings(patterns, rank, alpha, stacked, parts, whole)


def kernels_of(settings: Settings, base_params: Any) -> dict[str, Kernel]:
    """The kernels that are adapted, by name. Of what the patterns match, vectors (biases, scales) are passed over.

    Raises:
        ValueError: if there are no parameters, a pattern matches nothing or no kernel, a rank is larger than the
            smaller side of a kernel, or parts do not divide its outputs.
    """
    if base_params is None:
        raise ValueError(
            "low-rank adaptation is of pretrained parameters, and base_params is None: give them, or train all "
            "parameters from scratch without an adapter"
        )
    leaves = named_leaves(base_params)
    layered = set(matching("stacked", settings.stacked, leaves))
    adaptable = {
        name: leaf
        for name, leaf in leaves.items()
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.ndim(leaf) - (name in layered) >= 2
    }
    matching("patterns", settings.patterns, leaves)
    kernels = {}
    num_parts = dict.fromkeys(adaptable, 1)
    for pattern, parts in settings.parts.items():
        num_parts |= dict.fromkeys(matching("parts", [pattern], adaptable), parts)
    for name in matching("patterns (of kernels)", settings.patterns, adaptable):
        shape = jnp.shape(adaptable[name])
        num_layers = 1 if name in layered else 0
        kernel = Kernel(shape[:num_layers], shape[num_layers:-1], shape[-1], num_parts[name])
        if kernel.outputs % kernel.parts:
            raise ValueError(
                f"{name} has {kernel.outputs} outputs, which do not divide into parts={kernel.parts}"
            )
        largest = min(math.prod(kernel.inputs), kernel.outputs // kernel.parts)
        if settings.rank > largest:
            raise ValueError(
                f"rank={settings.rank} is beyond what {name} of shape {shape} can have, {largest}: use a smaller rank, "
                "or patterns that leave it out"
            )
        kernels[name] = kernel
    if twice := sorted(kernels.keys() & whole_of(settings, leaves).keys()):
        raise ValueError(
            f"{listed(twice)} are named by patterns and by whole: a parameter is adapted or whole"
        )
    return kernels


def whole_of(settings: Settings, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are trained whole, by name.

    Raises:
        ValueError: if a pattern matches no parameter of a floating-point dtype.
    """
    floating = {
        name: leaf for name, leaf in leaves.items() if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
    return {name: leaves[name] for name in matching("whole", settings.whole, floating)}


def initial(settings: Settings, key: Key[Array, ""], base_params: Any) -> dict[str, Factors | Difference]:
    """Factors of every kernel by its name, of an update of zero, and differences of zero. What a kernel gets depends on
    key and name alone."""
    leaves = named_leaves(base_params)

    def of(name: str, kernel: Kernel) -> Factors:
        dtype = jnp.promote_types(jnp.result_type(leaves[name]), jnp.float32)
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        shape = (*kernel.layers, *kernel.inputs, kernel.parts * settings.rank)
        a = jax.random.normal(own, shape, dtype) / math.sqrt(math.prod(kernel.inputs))
        return Factors(a, jnp.zeros((*kernel.layers, settings.rank, kernel.outputs), dtype))

    low_rank = {name: of(name, kernel) for name, kernel in kernels_of(settings, base_params).items()}
    whole = {
        name: Difference(jnp.zeros(jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32)))
        for name, leaf in whole_of(settings, leaves).items()
    }
    return low_rank | whole


def check_factors(settings: Settings, base_params: Any, adapters: Any) -> None:
    """Refuses adapters of other kernels than those of the settings in these parameters.

    Raises:
        ValueError: naming what is missing, too much, or of another shape.
    """
    if not isinstance(adapters, Mapping):
        raise ValueError(
            f"adapters must be a mapping name -> Factors, as init makes it, got {type(adapters).__name__}"
        )
    kernels, whole = kernels_of(settings, base_params), whole_of(settings, named_leaves(base_params))
    if missing := [name for name in (*kernels, *whole) if name not in adapters]:
        raise ValueError(f"there are no adapters for {listed(missing)}")
    if extra := [name for name in adapters if name not in kernels and name not in whole]:
        raise ValueError(f"there are adapters for {listed(extra)}, which the patterns do not choose")
    for name, kernel in kernels.items():
        expected = (
            (*kernel.layers, *kernel.inputs, kernel.parts * settings.rank),
            (*kernel.layers, settings.rank, kernel.outputs),
        )
        found = tuple(jnp.shape(factor) for factor in adapters[name])
        if found != expected:
            raise ValueError(
                f"the adapters of {name} must have the shapes {expected[0]} and {expected[1]}, got {found}"
            )
    for name, leaf in whole.items():
        found = [jnp.shape(part) for part in adapters[name]]
        if found != [jnp.shape(leaf)]:
            raise ValueError(f"the difference of {name} must have its shape {jnp.shape(leaf)}, got {found}")


def update_of(settings: Settings, kernel: Kernel, factors: Factors) -> Float[Array, "..."]:
    """``alpha / rank * A B``, in the shape of the kernel; part j of the outputs takes its own columns of A."""
    rows = math.prod(kernel.inputs)
    a = factors.a.reshape(*kernel.layers, rows, kernel.parts, settings.rank)
    b = factors.b.reshape(*kernel.layers, settings.rank, kernel.parts, -1)
    product = jnp.einsum("...ipr,...rpo->...ipo", a, b, precision=jax.lax.Precision.HIGHEST)
    return settings.scale * product.reshape(*kernel.layers, *kernel.inputs, kernel.outputs)


def _count(name: str, count: Any) -> int:
    if not isinstance(count, numbers.Integral) or count < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
    return int(count)

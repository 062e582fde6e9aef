"""Convolutions whose gradient is fast on CPU, inside loops too."""

import functools
import itertools
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array


class _Window(NamedTuple):
    """What is static in a convolution, but the layouts of its arrays."""

    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...] | None
    rhs_dilation: tuple[int, ...] | None
    precision: Any


_is_forward_mode = jax.make_user_context(False)


def forward_mode() -> AbstractContextManager[None]:
    """Within this context tangents of the convolutions here are fast in loops, and gradients are not.

    For what is traced there: a program with forward-mode derivatives alone, as of `gft_jax.objectives.mean_flow`.
    """
    return _is_forward_mode(True)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """``jax.lax.conv_general_dilated`` with the same values, whose gradient is fast on CPU inside loops too.

    For your own networks: ``flax.linen.Conv(..., conv_general_dilated=gft_jax.networks.conv_general_dilated)``.

    XLA's CPU backend has a fast program for the layouts ``NHWC, HWIO -> NHWC`` alone, and within a loop or a branch
    (``lax.scan``, ``lax.cond``) it brings no other layout into this form: there the gradients that JAX derives take
    tens of times as long. On CPU the derivative is therefore written with layouts whose transposes are the fast one,
    for arrays of this layout (with any number of space axes) and one feature group; all else, and other devices, have
    JAX's own. Derivatives of any order and in both modes are right, but tangents (forward mode) are fast within loops
    under `forward_mode` alone.

    Images smaller than the window, as at the lowest level of a U-Net, take XLA's CPU backend twenty times as long as
    others for the same work. On CPU they are written as matrices of patches, which are multiplied by the kernel.

    Args:
        lhs: images, ``[batch, *space, features]`` in the layout of the fast program.
        rhs: kernel, ``[*window, features, out_features]``.
        window_strides: step of the window along each space axis.
        padding: "SAME", "VALID", or how many zeros come before and after along each space axis.
        lhs_dilation: as in ``jax.lax.conv_general_dilated``, like all that follows.
        rhs_dilation: dilation of the window.
        dimension_numbers: the layouts.
        feature_group_count: number of groups.
        precision: of the products.
    """
    layouts = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    is_spread = any(step != 1 for step in lhs_dilation or ())
    if (
        jax.default_backend() != "cpu"
        or _is_forward_mode.value
        or layouts != _fast_layouts(lhs.ndim)
        or feature_group_count != 1
        or (isinstance(padding, str) and is_spread)  # lax has words of its own for it
    ):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            precision=precision,
        )
    if isinstance(padding, str):
        dilated = [
            (size - 1) * dilation + 1
            for size, dilation in zip(rhs.shape, rhs_dilation or (1,) * rhs.ndim, strict=False)
        ]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], dilated[: lhs.ndim - 2], window_strides, padding)

    def static(values: Any) -> Any:
        return None if values is None else tuple(values)

    window = _Window(
        tuple(window_strides),
        tuple((before, after) for before, after in padding),
        static(lhs_dilation),
        static(rhs_dilation),
        precision,
    )
    is_small = any(size < side for size, side in zip(lhs.shape[1:-1], rhs.shape, strict=False))
    if is_small and not is_spread:
        return _of_patches(window, lhs, rhs)
    return _on_cpu(window, lhs, rhs)


def _of_patches(window: _Window, lhs: Array, rhs: Array) -> Array:
    """The same as a product of matrices: what the window sees at each point times the kernel."""
    strides, taps = window.window_strides, rhs.shape[:-2]
    dilation = window.rhs_dilation or (1,) * len(taps)
    around = [(0, 0, 0), *((*pad, 0) for pad in window.padding), (0, 0, 0)]
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), around)
    rows, *space, features = padded.shape
    # Of the first tap, one behind its last place.
    ends = [size - (tap - 1) * step for size, tap, step in zip(space, taps, dilation, strict=True)]

    def seen(place: tuple[int, ...]) -> Array:
        """What the tap at this place of the window meets."""
        offset = [index * step for index, step in zip(place, dilation, strict=True)]
        stop = [first + end for first, end in zip(offset, ends, strict=True)]
        return lax.slice(padded, (0, *offset, 0), (rows, *stop, features), (1, *strides, 1))

    patches = jnp.concatenate([seen(place) for place in itertools.product(*map(range, taps))], axis=-1)
    kernel = rhs.reshape(-1, rhs.shape[-1])
    return lax.dot_general(patches, kernel, (((patches.ndim - 1,), (0,)), ((), ())), window.precision)


def _fast_layouts(rank: int) -> lax.ConvDimensionNumbers:
    space = tuple(range(rank - 2))
    images = (0, rank - 1, *(axis + 1 for axis in space))
    return lax.ConvDimensionNumbers(images, (rank - 1, rank - 2, *space), images)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _on_cpu(window: _Window, lhs: Array, rhs: Array) -> Array:
    return _apply(window, lhs, rhs, _fast_layouts(lhs.ndim))


@functools.partial(_on_cpu.defjvp, symbolic_zeros=True)
def _derivative(
    window: _Window, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    (lhs, rhs), (lhs_dot, rhs_dot) = primals, tangents
    last = lhs.ndim - 1
    space = tuple(range(lhs.ndim - 2))
    shifted = tuple(axis + 1 for axis in space)
    fast = _fast_layouts(lhs.ndim)
    # JAX transposes a convolution in its images by exchanging the kernel's two features, and in its kernel by
    # exchanging the images' rows with their features, and so on: exchanged here, they come out in the fast layout.
    by_lhs = lax.ConvDimensionNumbers(fast.lhs_spec, (last - 1, last, *space), fast.out_spec)
    by_rhs = lax.ConvDimensionNumbers((last, 0, *shifted), (last, 0, *shifted), (last - 1, last, *space))
    terms = []
    # Half of the work is none where one of the two is constant, as the kernel is along a flow.
    if not isinstance(lhs_dot, SymbolicZero):
        terms.append(_apply(window, lhs_dot, jnp.swapaxes(rhs, -1, -2), by_lhs))
    if not isinstance(rhs_dot, SymbolicZero):
        from_rhs = _apply(window, jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(rhs_dot, -2, 0), by_rhs)
        terms.append(jnp.moveaxis(from_rhs, -2, 0))
    return _on_cpu(window, lhs, rhs), functools.reduce(jnp.add, terms)


def _apply(window: _Window, lhs: Array, rhs: Array, layouts: lax.ConvDimensionNumbers) -> Array:
    return lax.conv_general_dilated(lhs, rhs, dimension_numbers=layouts, **window._asdict())

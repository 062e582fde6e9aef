"""State dicts of PyTorch to Flax parameters and back, by rules for names and layouts.

For a model of one's own::

    rules = [*layer("net.{i}", "Dense_{i}", LINEAR), Rule("table.weight", "table/embedding")]
    like = jax.eval_shape(module.init, key, t, x, cond)["params"]
    params = imported(read_state_dict("weights.safetensors"), rules, like)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gft_jax.networks.leaf_names import listed, named_leaves
from gft_jax.types import Params


class Layout(NamedTuple):
    """How the axes of an array lie, there and here."""

    from_torch: Callable[[np.ndarray], np.ndarray]
    """Array of the state dict -> leaf of the parameters."""
    to_torch: Callable[[np.ndarray], np.ndarray]
    """The inverse."""


AS_IS = Layout(lambda array: array, lambda array: array)
"""Biases, scales, tables of embeddings ``[entries, features]``."""
LINEAR = Layout(lambda array: array.transpose(1, 0), lambda array: array.transpose(1, 0))
"""``[out, in]`` <-> ``[in, out]``."""
CONVOLUTION = Layout(lambda array: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1))
"""``[out, in, height, width]`` <-> ``[height, width, in, out]``."""


class Rule(NamedTuple):
    """The entries of a state dict that become certain leaves of the parameters.

    Both names may have fields in braces, which stand for any characters but dots and slashes and are the same in
    both: ``Rule("blocks.{i}.fc.weight", "blocks_{i}/fc/kernel", LINEAR)``.
    """

    entry: str
    """Name in the state dict."""
    leaf: str | None
    """Name in the parameters, the keys and attributes joined by slashes, without the ``value`` of nnx's variables; None
    for an entry that is no parameter and is left out."""
    layout: Layout = AS_IS
    """How the axes are turned."""


def layer(entry: str, leaf: str, layout: Layout) -> list[Rule]:
    """Rules of a layer with a weight and a bias: ``entry.weight`` is ``leaf/kernel``, ``entry.bias`` ``leaf/bias``."""
    return [Rule(f"{entry}.weight", f"{leaf}/kernel", layout), Rule(f"{entry}.bias", f"{leaf}/bias")]


def imported(state: Mapping[str, Any], rules: Sequence[Rule], like: PyTree) -> Params:
    """Parameters made of a state dict, in the tree, the shapes and the dtypes of ``like``.

    Of several rules the first that fits the name of an entry counts. Every entry must have a rule, and every leaf an
    entry.

    Args:
        state: arrays by name in the layout of PyTorch, as of `read_state_dict`.
        rules: names and layouts.
        like: any pytree with the names of the rules: arrays, or what ``jax.eval_shape`` gives of an initialisation.

    Raises:
        ValueError: naming the entries that are missing, extra, of another shape, complex or not finite; for a rule with
            a leaf of unknown fields, and for two entries of one leaf.
    """
    expected = named_leaves(like)
    found: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    extra, misshapen, unusable = [], [], []
    for name, value in state.items():
        translated = _translated(name, rules, "entry", "leaf")
        if translated is None or translated[0] not in (None, *expected):
            extra.append(name)
            continue
        path, layout = translated
        if path is None:
            continue
        if path in origin:
            raise ValueError(f"{origin[path]} and {name} of the state dict are both {path} by the rules.")
        origin[path] = name
        wanted, array = expected[path], np.asarray(value)
        wanted_shape = np.shape(layout.to_torch(np.broadcast_to(np.int8(0), wanted.shape)))
        if array.shape != wanted_shape:
            misshapen.append(f"{name} is {array.shape}, expected {wanted_shape}")
            continue
        if not _is_real_and_finite(array):
            unusable.append(name)
            continue
        found[path] = layout.from_torch(array)
    missing = [_name_of(path, rules) for path in expected if path not in origin]
    problems = {"missing": missing, "extra": extra, "of another shape": misshapen}
    problems["not of finite real numbers"] = unusable
    if any(problems.values()):
        told = "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)
        raise ValueError(f"the state dict does not fit the network. {told}.")
    arrays = [jnp.asarray(found[path], leaf.dtype) for path, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def _is_real_and_finite(array: np.ndarray) -> bool:
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(array.dtype, kind) for kind in kinds) and bool(np.isfinite(array).all())


def exported(params: Params, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """State dict of parameters: undoes `imported`, but for entries that are no parameters.

    Raises:
        ValueError: naming the leaves for which there is no rule, and for two leaves of one entry.
    """
    state, unnamed = {}, []
    for path, leaf in named_leaves(params).items():
        translated = _translated(path, rules, "leaf", "entry")
        if translated is None or translated[0] is None:
            unnamed.append(path)
            continue
        name, layout = translated
        if name in state:
            raise ValueError(f"two leaves of the parameters are {name} by the rules, {path} is one.")
        state[name] = layout.to_torch(np.asarray(leaf))
    if unnamed:
        raise ValueError(f"there is no rule for {listed(unnamed)} of the parameters.")
    return state


def _translated(
    name: str, rules: Sequence[Rule], source: str, target: str
) -> tuple[str | None, Layout] | None:
    """Name on the other side and layout by the first rule that fits; None where there is none."""
    for rule in rules:
        pattern, other = getattr(rule, source), getattr(rule, target)
        match = None if pattern is None else re.fullmatch(_regex(pattern), name)
        if match is None:
            continue
        try:
            return (None if other is None else other.format(**match.groupdict())), rule.layout
        except KeyError as error:
            raise ValueError(f"{other!r} has the field {error}, which {pattern!r} does not have.") from error
    return None


def _regex(template: str) -> str:
    """Regular expression of a name with fields in braces."""
    seen: set[str] = set()

    def of_part(part: str) -> str:
        if not part.startswith("{"):
            return re.escape(part)
        field = part[1:-1]
        group = f"(?P={field})" if field in seen else rf"(?P<{field}>[^./]+)"
        seen.add(field)
        return group

    return "".join(of_part(part) for part in re.split(r"(\{\w+\})", template) if part)


def _name_of(path: str, rules: Sequence[Rule]) -> str:
    """Entry of a leaf, to be told; the leaf itself where no rule names it."""
    translated = _translated(path, rules, "leaf", "entry")
    return path if translated is None or translated[0] is None else translated[0]

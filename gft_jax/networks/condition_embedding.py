"""One embedding of a condition for all networks: class labels, vectors, or several of both by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

LABEL, VECTOR = "label", "vector"
"""Names of the entries of a condition that holds one label and one vector."""

Sizes = int | Mapping[str, int] | None
"""A size, sizes by the name of an entry, or None for no such entry."""


class ConditionEmbedding(nn.Module):
    """Embedding ``[batch, features]`` of a condition: a table of labels, a projection of vectors, or sums of both.

    With one label (``num_classes=10``) or one vector (``cond_features=768``) the condition is that array itself. With
    several entries it is a mapping ``name -> array``, and the embeddings are added up: the names are "label" and
    "vector" where both sizes are integers, else those of the sizes, ``num_classes={"class": 10, "domain": 3}``. Entries
    that are left out are null.

    Null values, as classifier-free guidance needs them (``null_cond`` of `gft_jax.pairing.batches` and of
    `gft_jax.drifts.guide`): of a label with K classes the index K. Of a vector, with ``learned_null``, a row of NaN
    throughout: it gets a trained embedding of its own. Without it any value may stand for null, such as zeros or the
    embedding of the empty text: give it as ``null_cond``. `null_condition` makes the null of all entries.

    Parameters of a condition that is one array lie in the module's own scope (``embedding``, or ``kernel`` and
    ``bias``), those of several entries in scopes of their names, ``labels_class`` and ``vectors_text``; that of a
    learned null is called ``null``. Computation runs in ``dtype``.

    Attributes:
        features: width of the embedding, >= 1.
        num_classes: number K >= 1 of classes of the label, or of labels by name: integers ``[batch]`` in 0 .. K - 1, or
            K for null. Labels cannot be checked under jit: one above K gives NaN, a negative one counts from the end,
            so check labels where rows are paired.
        cond_features: width >= 1 of the vector, or of vectors by name: floats ``[batch, width]``.
        learned_null: whether vectors have a learned null; without one, none of them may be left out.
        dtype: dtype of the embedding.
        param_dtype: dtype of the parameters.
        embedding_init: initial values of the tables; default those of ``flax.linen.Embed``.
        kernel_init: initial values of the projections; default those of ``flax.linen.Dense``.

    Raises:
        ValueError: at construction, as `check_sizes`; at the call, if an entry is missing, unknown, or of another kind
            or shape.
    """

    features: int
    num_classes: Sizes = None
    cond_features: Sizes = None
    learned_null: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    embedding_init: Callable[..., Any] = nn.linear.default_embed_init
    kernel_init: Callable[..., Any] = nn.linear.default_kernel_init

    def __post_init__(self):
        if self.features < 1:
            raise ValueError(f"features must be >= 1, got {self.features}.")
        check_sizes(self.num_classes, self.cond_features, self.learned_null)
        super().__post_init__()

    def setup(self):
        """Makes tables and projections."""
        self.labels = {
            name: nn.Embed(classes + 1, self.features, self.dtype, self.param_dtype, self.embedding_init)
            for name, classes in _by_name(self.num_classes, LABEL).items()
        }
        self.vectors = {
            name: _Projection(
                self.features, self.learned_null, self.dtype, self.param_dtype, self.kernel_init
            )
            for name in _by_name(self.cond_features, VECTOR)
        }
        if _is_alone(self.num_classes, self.cond_features):
            nn.share_scope(self, (*self.labels.values(), *self.vectors.values())[0])

    def __call__(self, cond: Any, num_rows: int) -> Float[Array, "{num_rows} {self.features}"]:
        """Embedding of the conditions of ``num_rows`` rows; of null where there is none."""
        entries = self._entries(cond)
        embedded = []
        for name, classes in _by_name(self.num_classes, LABEL).items():
            embedded.append(self.labels[name](_labels(name, entries.get(name), num_rows, classes)))
        for name, width in _by_name(self.cond_features, VECTOR).items():
            vectors = _vectors(name, entries.get(name), num_rows, width, self.learned_null)
            embedded.append(self.vectors[name](jnp.asarray(vectors, self.dtype)))
        return functools.reduce(jnp.add, embedded)

    def _entries(self, cond: Any) -> Mapping[str, Any]:
        names = [*_by_name(self.num_classes, LABEL), *_by_name(self.cond_features, VECTOR)]
        if cond is None:
            return {}
        if _is_alone(self.num_classes, self.cond_features):
            return {names[0]: cond}
        if not isinstance(cond, Mapping) or not set(cond) <= set(names):
            got = f"the entries {sorted(cond)}" if isinstance(cond, Mapping) else type(cond).__name__
            raise ValueError(f"cond must be a mapping with entries among {names}; got {got}.")
        return cond


class _Projection(nn.Module):
    """Projection of vectors; rows of NaN get the learned null, if there is one."""

    features: int
    learned_null: bool
    dtype: DTypeLike
    param_dtype: DTypeLike
    kernel_init: Callable[..., Any]

    def setup(self):
        """Makes the projection, and the null."""
        self.dense = nn.Dense(
            self.features, dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=self.kernel_init
        )
        nn.share_scope(self, self.dense)
        if self.learned_null:
            self.null = self.param("null", nn.initializers.zeros, (self.features,), self.param_dtype)

    def __call__(self, vectors: Array) -> Array:
        if not self.learned_null:
            return self.dense(vectors)
        is_null = jnp.all(jnp.isnan(vectors), axis=-1, keepdims=True)
        # Replaced before the projection too: NaN times the zero that selects is NaN in its gradient.
        projected = self.dense(jnp.where(is_null, 0, vectors))
        return jnp.where(is_null, self.null.astype(self.dtype), projected)


def takes_condition(network: Any) -> bool:
    """Whether a network with the fields num_classes and cond_features takes a condition."""
    return network.num_classes is not None or network.cond_features is not None


def check_condition_fields(network: Any) -> None:
    """Refuses fields num_classes, cond_features and learned_null of a network of which no condition can be made.

    Raises:
        ValueError: as `check_sizes`.
    """
    if takes_condition(network) or network.learned_null:
        check_sizes(network.num_classes, network.cond_features, network.learned_null)


def with_condition(
    network: Any, embedding: Float[Array, "batch features"], cond: Any, name: str, **inits: Any
) -> Float[Array, "batch features"]:
    """The embedding plus that of the condition, by a `ConditionEmbedding` of this name within the calling network.

    Args:
        network: a network with the fields num_classes, cond_features, learned_null and param_dtype.
        embedding: of the time, say, in the dtype of the computation.
        cond: conditions of the rows, or None.
        name: of the submodule.
        **inits: initial values, as `ConditionEmbedding` takes them.

    Raises:
        ValueError: if cond is missing, unexpected or of another kind.
    """
    if takes_condition(network):
        embed = ConditionEmbedding(
            embedding.shape[-1],
            network.num_classes,
            network.cond_features,
            network.learned_null,
            embedding.dtype,
            network.param_dtype,
            name=name,
            **inits,
        )
        return embedding + embed(cond, embedding.shape[0])
    if cond is not None:
        raise ValueError(
            "cond was given to an unconditional network; set num_classes or cond_features, or pass None."
        )
    return embedding


def check_sizes(num_classes: Sizes, cond_features: Sizes, learned_null: bool) -> None:
    """Refuses sizes of which no condition can be made; networks call it at their construction.

    Raises:
        ValueError: for a size below one, no size at all, a name that is taken twice, or a learned null without vectors.
    """
    for field, sizes in (("num_classes", num_classes), ("cond_features", cond_features)):
        for name, size in _by_name(sizes, "").items():
            if size < 1:
                raise ValueError(f"{f'{field}[{name!r}]' if name else field} must be >= 1, got {size}.")
    labels, vectors = _by_name(num_classes, LABEL), _by_name(cond_features, VECTOR)
    if not labels and not vectors:
        raise ValueError("a condition needs num_classes (of labels) or cond_features (of vectors), or both.")
    if twice := sorted(set(labels) & set(vectors)):
        raise ValueError(f"{twice} are entries of num_classes and of cond_features; name each entry once.")
    if learned_null and not vectors:
        raise ValueError(
            "learned_null is of vectors, and cond_features is None: labels have a null class already."
        )


def _is_alone(num_classes: Sizes, cond_features: Sizes) -> bool:
    """Whether the condition is one array instead of a mapping of several."""
    sizes = [size for size in (num_classes, cond_features) if size is not None]
    return len(sizes) == 1 and not isinstance(sizes[0], Mapping)


def null_condition(num_classes: Sizes = None, cond_features: Sizes = None) -> Any:
    """The null condition of a network with these sizes and ``learned_null``: one row, as ``null_cond`` takes it.

    ``num_classes`` for labels, NaN throughout for vectors; a mapping of them where the condition is one.

    Raises:
        ValueError: as `check_sizes`.
    """
    check_sizes(num_classes, cond_features, learned_null=False)
    null: dict[str, Any] = {
        name: np.int32(classes) for name, classes in _by_name(num_classes, LABEL).items()
    } | {name: np.full(width, np.nan, np.float32) for name, width in _by_name(cond_features, VECTOR).items()}
    return null.popitem()[1] if _is_alone(num_classes, cond_features) else null


def _by_name(sizes: Sizes, name: str) -> Mapping[str, int]:
    if sizes is None:
        return {}
    return sizes if isinstance(sizes, Mapping) else {name: sizes}


def _labels(name: str, labels: Any, num_rows: int, num_classes: int) -> Array:
    """Integer labels ``[batch]``; the null class in every row where there are none."""
    if labels is None:
        return jnp.full(num_rows, num_classes)
    if jnp.shape(labels) != (num_rows,) or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"With num_classes={num_classes} the {name} of cond must be integer labels of shape {(num_rows,)}; got "
            f"{jnp.result_type(labels)} of shape {jnp.shape(labels)}."
        )
    return jnp.asarray(labels)


def _vectors(name: str, vectors: Any, num_rows: int, width: int, learned_null: bool) -> Array:
    """Float vectors ``[batch, width]``; the learned null in every row where there are none."""
    expected = (num_rows, width)
    if vectors is None:
        if learned_null:
            return jnp.full(expected, jnp.nan)
        raise ValueError(
            f"With cond_features={width} the {name} of cond must be floats of shape {expected}; got None. Give the "
            "value that stands for null in every row, or set learned_null."
        )
    if jnp.shape(vectors) != expected or not jnp.issubdtype(jnp.result_type(vectors), jnp.floating):
        raise ValueError(
            f"With cond_features={width} the {name} of cond must be floats of shape {expected}; got "
            f"{jnp.result_type(vectors)} of shape {jnp.shape(vectors)}."
        )
    return jnp.asarray(vectors)

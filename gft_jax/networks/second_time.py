"""The second time of average-velocity networks: an embedding of the interval that is zero at the start."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gft_jax.networks.embeddings import check_max_frequency, flow_time_frequencies, sinusoids
from gft_jax.networks.leaf_names import listed, named_leaves
from gft_jax.types import Params

NAME = "second_time"
"""Name of the submodule within a network."""


class SecondTime(nn.Module):
    """Embedding ``[batch, features]`` of intervals ``s - t``: a two-layer perceptron on sinusoids, zero at the start.

    For a linen network of your own: add ``SecondTime(width, name="second_time")(s - t)`` to its embedding of t, s a
    further argument of ``__call__``; then `gft_jax.drifts.two_times` makes a drift of it and `two_time_params` its
    parameters. The last layer starts at zero, so that the second time changes nothing until it is trained.

    The target of an average velocity holds its derivative by time, to which a feature of angular frequency w adds in
    proportion to w: the features of the interval are slow, and those of t should be. From one normal law to another, by
    3000 steps of a small `ResidualMLP`, the error of one-step samples was 0.23 to 0.33 with features of t up to 50, and
    0.07 to 0.11 with those up to 8 (root mean square, three seeds, standard deviation of the law 0.5; ``python -m
    experiments.few_steps.frequencies``). Pretrain with ``max_frequency=8`` where that can still be chosen; the features
    of `SiT` go up to 1.

    Attributes:
        features: width of the embedding, >= 1.
        num_sinusoids: features of the interval, even, >= 2.
        max_frequency: largest angular frequency of these, >= 1, in radians per unit of flow time.
        dtype: dtype of the embedding; intervals are taken in float32 at least.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: at construction, if a size is out of range.
    """

    features: int
    num_sinusoids: int = 64
    max_frequency: float = 2.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.features < 1:
            raise ValueError(f"features must be >= 1, got {self.features}.")
        if self.num_sinusoids < 2 or self.num_sinusoids % 2:
            raise ValueError(f"num_sinusoids must be even and >= 2, got {self.num_sinusoids}.")
        check_max_frequency(self.max_frequency)
        super().__post_init__()

    @nn.compact
    def __call__(self, interval: Float[Array, "batch"]) -> Float[Array, "batch {self.features}"]:
        """Embedding of the intervals s - t in [0, 1]."""

        def dense(name: str, **kwargs: Any) -> nn.Dense:
            return nn.Dense(
                self.features, name=name, dtype=self.dtype, param_dtype=self.param_dtype, **kwargs
            )

        features = sinusoids(
            interval.astype(jnp.promote_types(interval.dtype, jnp.float32)),
            flow_time_frequencies(self.num_sinusoids, self.max_frequency),
        )
        h = nn.silu(dense("first")(features.astype(self.dtype)))
        return dense("last", kernel_init=nn.initializers.zeros)(h)


def with_second_time(
    network: Any, embedding: Float[Array, "batch features"], t: Array, s: Array | None
) -> Float[Array, "batch features"]:
    """The embedding plus that of the interval s - t, by a `SecondTime` within the calling network.

    Args:
        network: a network with the fields two_times and param_dtype.
        embedding: of the time t, in the dtype of the computation.
        t: flow times ``[batch]``.
        s: second flow times ``[batch]``; None for those of t.

    Raises:
        ValueError: if s is given to a network of one time, or is not of the shape of t, or the parameters are those of
            a network of one time.
    """
    if not network.two_times:
        if s is not None:
            raise ValueError(
                f"a second time was given to a {type(network).__name__} of one time: make it with two_times=True, and "
                "its parameters of the pretrained ones by gft_jax.networks.two_time_params."
            )
        return embedding
    s = t if s is None else s
    if s.shape != t.shape:
        raise ValueError(f"s must have the shape {t.shape} of t, got shape {s.shape}.")
    if not (network.is_initializing() or network.has_variable("params", NAME)):
        raise ValueError(
            f"these are parameters of a {type(network).__name__} of one time, and it has two_times=True: make them of "
            "the pretrained ones by gft_jax.networks.two_time_params."
        )
    dtype = jnp.promote_types(embedding.dtype, jnp.float32)
    embed = SecondTime(embedding.shape[-1], dtype=embedding.dtype, param_dtype=network.param_dtype, name=NAME)
    return embedding + embed(s.astype(dtype) - t.astype(dtype))


def two_time_params(base_params: Params, initial_params: Params) -> Params:
    """Parameters of a two-time network that is the pretrained one, whatever the second time::

        network = SiT.preset("S/2", two_times=True)
        params = two_time_params(base_params, network.init(key, t, x, cond)["params"])

    Those of the pretrained network by their names, and the initial ones where it has none: there they must have no
    effect, as those of `SecondTime` have none. Any pytrees will do, of linen, nnx or equinox. Nothing is copied. Where
    some of the further parameters lie in a ``second_time``, all have to: others would be those of another network, such
    as one with a condition more.

    Args:
        base_params: of the network of one time.
        initial_params: of the two-time network, freshly initialised.

    Raises:
        ValueError: if the two-time network does not have all parameters of the other, in their shapes (names them),
            has no further ones, or further ones beside those of its ``second_time``.
    """
    base, initial = named_leaves(base_params), named_leaves(initial_params)
    differing = [
        name
        for name, leaf in base.items()
        if name not in initial or jnp.shape(leaf) != jnp.shape(initial[name])
    ]
    if differing:
        raise ValueError(
            f"the two-time network has no parameters {listed(differing)} in the shapes of the pretrained ones: give it "
            "the settings and the names of the pretrained one."
        )
    further = [name for name in initial if name not in base]
    if not further:
        raise ValueError(
            "the initial parameters have no second time, only what the pretrained ones have: make the network with "
            "two_times=True."
        )
    others = [name for name in further if NAME not in name.split("/")]
    if 0 < len(others) < len(further):
        raise ValueError(
            f"the two-time network has {listed(others)} besides its second time, and the pretrained one has not: they "
            "would keep their random values. Give it the settings of the pretrained one."
        )
    leaves = [base.get(name, leaf) for name, leaf in initial.items()]
    return jax.tree.unflatten(jax.tree.structure(initial_params), leaves)

"""A residual multilayer perceptron as a drift network, for events of any shape."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from gft_jax.networks.condition_embedding import Sizes, check_condition_fields, with_condition
from gft_jax.networks.embeddings import check_max_frequency, flow_time_frequencies, sinusoids
from gft_jax.networks.second_time import with_second_time


class ResidualMLP(nn.Module):
    """Velocity network ``module(t, x, cond=None)`` of residual blocks on the flattened event.

    With ``e = silu(A s(t) + embedding of the condition)``, s(t) sinusoids of fixed frequencies, and
    ``(scale, shift) = B e``, each block adds ``W silu((1 + scale) h + shift)`` to its input h. The scale and the
    shift are shared by the blocks, which keeps conditioning cheap: 333,696 parameters for 64-dimensional
    events with the defaults. There is no normalisation: at these depths it costs time and did not lower the
    loss (flow matching on handwritten digits).

    The last layer starts at zero, so the initial drift is zero everywhere: training from scratch starts at the
    loss of the zero field instead of that of a random one. It also means that a freshly initialised network
    does not react to its inputs yet.

    Computation runs in the dtype of x, whatever the dtype of the parameters.

    Attributes:
        hidden: width of the blocks, >= 1.
        depth: number of residual blocks, >= 1.
        time_features: number of sinusoids of t, and width of the embedding e; even, >= 2.
        max_frequency: largest angular frequency of the sinusoids of t, >= 1, in radians per unit of flow time. The
            default, eight periods, is finer than drifts of smooth paths need; give a network that is to become an
            average velocity 8 or less, see `SecondTime`.
        num_classes: number K >= 1 of classes where the condition is a label: integers ``[batch]`` in 0 .. K - 1. The
            index K is the null class and means "no condition"; ``cond=None`` is the same as K in every row (as
            classifier-free guidance needs). Labels, vectors and several of them by name: see `ConditionEmbedding`.
        cond_features: width >= 1 of the condition where it is a vector, floats ``[batch, cond_features]``.
        learned_null: whether vectors have a learned null, which a row of NaN and ``cond=None`` stand for; without it
            they are obligatory.
        two_times: whether the network takes a second time s, for average velocities; see `SecondTime`.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: at construction, if a field is out of range; at the call, if the shape of t does not fit x, or cond
            or s is missing, unexpected, or of another kind or shape.
    """

    hidden: int = 256
    depth: int = 4
    time_features: int = 64
    max_frequency: float = 50.0
    num_classes: Sizes = None
    cond_features: Sizes = None
    learned_null: bool = False
    two_times: bool = False
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        for name in ("hidden", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        check_condition_fields(self)
        if self.time_features < 2 or self.time_features % 2:
            raise ValueError(f"time_features must be even and >= 2, got {self.time_features}.")
        check_max_frequency(self.max_frequency)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        t: Num[Array, "..."],
        x: Float[Array, "batch *event"],
        cond: Any = None,
        s: Num[Array, "..."] | None = None,
    ) -> Float[Array, "batch *event"]:
        """Velocity ``[batch, *event]`` at flow times t ``[batch]`` and positions x, given cond; its mean from t to s if
        the network takes two times."""
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t must have shape {x.shape[:1]} for x of shape {x.shape}, got shape {t.shape}."
            )

        def dense(features: int, name: str, **kwargs: Any) -> nn.Dense:
            return nn.Dense(features, name=name, dtype=x.dtype, param_dtype=self.param_dtype, **kwargs)

        # Angles are taken in float32 at least: half precision would round t itself.
        features = sinusoids(
            t.astype(jnp.promote_types(x.dtype, jnp.float32)),
            flow_time_frequencies(self.time_features, self.max_frequency),
        )
        embedding = dense(self.time_features, "time")(features.astype(x.dtype))
        embedding = with_condition(self, embedding, cond, "condition")
        embedding = with_second_time(self, embedding, t, s)

        modulation = dense(2 * self.hidden, "modulation")(nn.silu(embedding))
        scale, shift = jnp.split(modulation, 2, axis=-1)
        event_size = math.prod(x.shape[1:])
        h = dense(self.hidden, "first")(x.reshape(x.shape[0], event_size))
        for i in range(self.depth):
            h += dense(self.hidden, f"block_{i}")(nn.silu((1 + scale) * h + shift))
        velocity = dense(event_size, "last", kernel_init=nn.initializers.zeros)(nn.silu(h))
        return velocity.reshape(x.shape)

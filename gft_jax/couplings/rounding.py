"""Pairs made from a transport plan: drawn with repetition, or one to one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key, Shaped

from gft_jax.couplings.base import Pairing, permutation_pairing


class Plan(NamedTuple):
    """A transport plan between the rows of x1 and those of x0, in the log domain."""

    log: Array
    """``log P_ji``, ``[rows of x1, rows of x0]``."""
    squared: Array
    """``|x0_i - x1_j|^2``, likewise."""
    converged: Array
    """Whether the iteration came within its threshold."""
    marginal_error: Array
    """As in `Pairing`."""


Rounding = Callable[[Array, Plan, Array, Array], Pairing]
"""``(key, plan, x0 [rows, size], x1 [rows, size])`` -> pairing; ``converged`` is that of the plan."""


def drawn(key: Key[Array, ""], plan: Plan, x0: Shaped[Array, "..."], x1: Shaped[Array, "..."]) -> Pairing:
    """Each row of x1 draws its partner from its law under the plan, independently of the others.

    Pairs have the law of the plan, so that a Schroedinger bridge stays one; but an x0 may be used several times, or
    never: for a blurred plan 1 - 1/e = 63 % of the rows of x0 are used.
    """
    rows = len(plan.log)
    # One key a row: the draws of two rows of x1 are independent.
    partner = jax.vmap(jax.random.categorical)(jax.random.split(key, rows), plan.log)
    return Pairing(
        source_index=partner.astype(jnp.int32),
        target_index=jnp.arange(rows, dtype=jnp.int32),
        weight=None,
        converged=plan.converged,
        cost=jnp.mean(jnp.sum(jax.nn.softmax(plan.log, axis=1) * plan.squared, axis=1)),
        marginal_error=plan.marginal_error,
        entropy=_entropy(plan),
    )


def one_to_one(
    key: Key[Array, ""], plan: Plan, x0: Shaped[Array, "..."], x1: Shaped[Array, "..."]
) -> Pairing:
    """Pairs drawn from the plan without repetition: every row of x0 and of x1 is used exactly once.

    Pairs ``(i, j)`` are drawn one after another with probability proportional to ``P_ij`` among the rows that are
    left: the plan plus Gumbel noise, in the log domain, and the largest entries first. As epsilon falls the result
    becomes the exact assignment, as it grows a uniformly random permutation. Both marginals are exact, also of a
    plan that has not converged; what the law of the pairs loses is that of the last pairs, which take what is left.

    ``cost`` and ``marginal_error`` are those of the pairs themselves, ``entropy`` is that of the plan.
    """
    score = plan.log + jax.random.gumbel(key, plan.log.shape, plan.log.dtype)
    pairing = permutation_pairing(x0, x1, _largest_first(score))
    return pairing._replace(converged=plan.converged & pairing.converged, entropy=_entropy(plan))


def _entropy(plan: Plan) -> Float[Array, ""]:
    law = jax.nn.softmax(plan.log, axis=1)
    return jnp.mean(-jnp.sum(jax.scipy.special.xlogy(law, law), axis=1))


def _largest_first(score: Float[Array, "rows columns"]) -> Int32[Array, "rows"]:
    """Column of each row, in the matching that takes the largest entry, strikes out its row and column, and so on.

    An entry that is the largest of its row and of its column is taken whatever else is: so all of these at once.
    """
    taken = -jnp.inf
    # Pairs of probability zero are last, yet before what is struck out; so the largest of all is always free.
    score = jnp.maximum(jnp.nan_to_num(score, nan=taken), jnp.finfo(score.dtype).min)
    rows = jnp.arange(len(score))

    def open_rows(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[1] < 0)

    def take(state: tuple[Array, Array]) -> tuple[Array, Array]:
        score, column = state
        best_column, best_row = jnp.argmax(score, axis=1), jnp.argmax(score, axis=0)
        mutual = (column < 0) & (best_row[best_column] == rows)
        column = jnp.where(mutual, best_column, column)
        struck_column = jnp.zeros(len(score), bool).at[best_column].max(mutual)
        return jnp.where(mutual[:, None] | struck_column[None, :], taken, score), column

    start = score, jnp.full(len(score), -1, rows.dtype)
    return jax.lax.while_loop(open_rows, take, start)[1].astype(jnp.int32)

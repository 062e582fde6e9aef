"""Pairs made from a transport plan: drawn with repetition, or one to one."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

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
    law = _law(plan)
    # A block of partners first, then one of the block: sums over a row of the plan, without a running one.
    rows = len(plan.log)
    size = math.ceil(math.sqrt(rows))
    blocks = jnp.pad(law, ((0, 0), (0, size**2 - rows))).reshape(rows, size, size)
    keys = jax.random.split(key, rows)  # rows of x1 draw independently
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,), law.dtype))(keys)
    block = _draw(uniform[:, 0], jnp.sum(blocks, axis=2))
    within = _draw(uniform[:, 1], blocks[jnp.arange(rows), block])
    partner = jnp.minimum(block * size + within, rows - 1)  # where the plan is not a number
    return Pairing(
        source_index=partner.astype(jnp.int32),
        target_index=jnp.arange(rows, dtype=jnp.int32),
        weight=None,
        converged=plan.converged,
        cost=jnp.mean(jnp.sum(law * plan.squared, axis=1)),
        marginal_error=plan.marginal_error,
        entropy=_entropy(plan),
    )


def one_to_one(
    key: Key[Array, ""], plan: Plan, x0: Shaped[Array, "..."], x1: Shaped[Array, "..."]
) -> Pairing:
    """Pairs drawn from the plan without repetition: every row of x0 and of x1 is used exactly once.

    The rows of x1, in random order, draw one after another from their laws under the plan, restricted to the rows of x0
    that are left. As epsilon falls the result becomes the exact assignment, as it grows a uniformly random
    permutation. Both marginals are exact, also of a plan that has not converged; what the law of the pairs loses is
    that of the last rows, which take what is left.

    ``cost`` and ``marginal_error`` are those of the pairs themselves, ``entropy`` is that of the plan.
    """
    rows = len(plan.log)
    key_order, key_draws = jax.random.split(key)
    order = jax.random.permutation(key_order, rows)
    # Partners of probability zero are last, yet before those that are taken.
    taken, least = -jnp.inf, jnp.finfo(plan.log.dtype).min

    def draw(free: Array, row_and_key: tuple[Array, Array]) -> tuple[Array, Array]:
        row, key_row = row_and_key
        log = jnp.maximum(jnp.nan_to_num(plan.log[row], nan=least), least)
        partner = jax.random.categorical(key_row, jnp.where(free, log, taken)).astype(jnp.int32)
        return free.at[partner].set(False), partner

    free = jnp.ones(rows, bool)
    _, partners = jax.lax.scan(draw, free, (order, jax.random.split(key_draws, rows)))
    pairing = permutation_pairing(x0, x1, jnp.zeros(rows, jnp.int32).at[order].set(partners))
    return pairing._replace(converged=plan.converged & pairing.converged, entropy=_entropy(plan))


def _draw(uniform: Float[Array, "rows"], mass: Float[Array, "rows columns"]) -> Int[Array, "rows"]:
    """A column of each row with probability in proportion to its mass, >= 0: never one without any."""
    running = jnp.cumsum(mass, axis=1)
    total = running[:, -1]
    # Rounded down, since a product that is the total itself would be beyond the last column.
    level = jnp.minimum(uniform * total, jnp.nextafter(total, jnp.zeros_like(total)))
    candidates = (running > level[:, None]) & (mass > 0)
    return jnp.where(jnp.any(candidates, axis=1), jnp.argmax(candidates, axis=1), jnp.argmax(mass, axis=1))


def _law(plan: Plan) -> Float[Array, "rows rows"]:
    """Of the partners of each row of x1."""
    return jax.nn.softmax(plan.log, axis=1)


def _entropy(plan: Plan) -> Float[Array, ""]:
    law = _law(plan)
    log = plan.log - jax.nn.logsumexp(plan.log, axis=1, keepdims=True)
    return jnp.mean(-jnp.sum(jnp.where(law > 0, law * log, 0), axis=1))

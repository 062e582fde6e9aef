"""A key for each row, so that its noise depends on neither its batch mates nor chunks nor devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key


def row_keys(key: Key[Array, "*rows"], num_rows: int) -> Key[Array, "rows"]:
    """The keys given, one a row, or ``fold_in(key, i)`` of a single key for row i.

    Raises:
        ValueError: for a key that is not typed, or keys that are neither one nor one a row.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        found = repr(key) if dtype is None else f"an array of dtype {dtype}"
        raise ValueError(f"key must be typed, from jax.random.key, got {found}.")
    if key.shape == ():
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(num_rows))
    if key.shape != (num_rows,):
        raise ValueError(
            f"key must be one key, or one for each of the {num_rows} rows, got shape {key.shape}."
        )
    return key

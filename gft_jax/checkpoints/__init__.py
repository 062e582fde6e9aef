"""Checkpoints with Orbax: save a pytree of arrays, restore it bit for bit, never a wrong or a half-written one.

What is on disk, one directory per step, also readable by Orbax alone::

    directory/<step>/state/   the arrays, one flat dict named by position and path, such as "3.params['w']"
    directory/<step>/info/    JSON: path, shape and dtype of every leaf, and the caller's metadata
    directory/<step>/metrics/ JSON: the metrics by which one step is the best, where there are any
    directory/<step>/checksums.json    SHA-256 of every file of these

The leaves are written flat, not as the caller's tree, because Orbax joins the names of a path by dots: in
``{"a.b": x, "a": {"b": y}}`` both would be ``a.b``, and one would be restored in place of the other. It also casts
silently where dtypes differ, so they are compared here first, and it restores array data with a flipped bit as if
nothing were wrong, hence the checksums (Orbax 0.12.8).
"""

from gft_jax.checkpoints.adapters import load_adapters, save_adapters
from gft_jax.checkpoints.failures import NotSaved
from gft_jax.checkpoints.files import Unreadable, set_aside
from gft_jax.checkpoints.keeping import Best
from gft_jax.checkpoints.leaves import fingerprint
from gft_jax.checkpoints.params import has_params, load_params, params_metadata, save_params
from gft_jax.checkpoints.processes import agreed
from gft_jax.checkpoints.steps import Checkpoints

__all__ = [
    "Best",
    "Checkpoints",
    "NotSaved",
    "Unreadable",
    "agreed",
    "fingerprint",
    "has_params",
    "load_adapters",
    "load_params",
    "params_metadata",
    "save_adapters",
    "save_params",
    "set_aside",
]

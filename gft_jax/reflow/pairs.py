"""Pairs of noise and what a model makes of it, made in chunks and kept on disk."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from tqdm import tqdm

from gft_jax.checkpoints import fingerprint
from gft_jax.data import open_array
from gft_jax.pairing import Source
from gft_jax.pairing.checks import check_cond, check_integer
from gft_jax.reflow.files import (
    ArrayFile,
    check_same,
    cond_files,
    description_of,
    finish,
    note_rows,
    partial_of,
    read_cond,
    rows_done,
)
from gft_jax.types import Params

Sample = Callable[[Any, Array, Any], Array]
"""``(params, x0, cond)`` -> samples like x0, such as ``sample_ode(drift, params, x0, cond=cond).x``."""


class Pairs(NamedTuple):
    """Pairs of a model, row by row; arrays that are read from disk when they are asked for."""

    x0: np.ndarray
    """Noise ``[num_pairs, *event]``."""
    x1: np.ndarray
    """What the model's flow makes of it, likewise."""
    cond: Any
    """Conditions under which it did: an array or a dict of arrays ``[num_pairs, ...]``, or None."""
    model: str
    """Fingerprint of the model's parameters."""


def make_pairs(
    directory: str | os.PathLike[str],
    sample: Sample,
    params: Params,
    source: Source,
    *,
    num_pairs: int,
    seed: int,
    cond: Any = None,
    settings: Mapping[str, Any] | None = None,
    chunk_size: int = 1024,
    progress: bool = True,
) -> Pairs:
    """Pairs ``(x0, flow(x0))`` of a model, written to a directory a chunk at a time, and opened.

    Killed in the middle, the same call goes on where it was: pair i depends on seed, i, model and condition alone. The
    pairs get their name when all are there; until then they lie in ``<directory>.partial``. Called again for pairs that
    are there, it opens them. One process makes them.

    Args:
        directory: where they are to lie; not there yet, or of these very pairs.
        sample: the model's flow from noise to data, called under jit; deterministic.
        params: parameters of the model; their content is kept as its fingerprint.
        source: draws x0, such as `gft_jax.pairing.standard_normal`, without conditions of its own.
        num_pairs: number of pairs, >= 1.
        seed: of the sources.
        cond: conditions of the pairs, an array ``[num_pairs, ...]`` or a dict of such, or None.
        settings: what else the pairs depend on, anything that JSON can hold, such as ``{"num_steps": 100}``: pairs made
            under other settings are refused.
        chunk_size: pairs that are made at once, >= 1.
        progress: whether to show a bar of the pairs.

    Raises:
        ValueError: for counts below one, a negative seed, conditions of another number of rows, a source with
            conditions or samples of another shape; for pairs of another model in the directory, or made under other
            settings; for samples that are not finite (says which; those before are kept).
        FileExistsError: if the directory holds something else.
    """
    directory = Path(directory).absolute()
    check_integer("num_pairs", num_pairs, 1)
    check_integer("chunk_size", chunk_size, 1)
    check_integer("seed", seed, 0)
    check_cond("cond", cond, num_pairs)
    names = _names_of(cond)
    x0, x1 = _like(source, sample, params, cond)
    description = {
        "model": fingerprint(params),
        "num_pairs": num_pairs,
        "event_shape": list(x0.shape[1:]),
        "dtypes": [x0.dtype.name, x1.dtype.name],
        "seed": seed,
        "cond": names,
        "cond_content": None if cond is None else fingerprint(jax.tree.map(np.asarray, cond)),
        "settings": _as_json(settings),
    }
    there = description_of(directory)
    if there is not None:
        check_same(directory, there, description)
        return open_pairs(directory, params)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(
            f"{directory} holds something else than pairs of a model: choose another directory."
        )
    partial = partial_of(directory)
    done = rows_done(partial, description)
    if done == 0:
        _begin(partial, description, cond)
    files = [
        ArrayFile(partial / f"{name}.npy", (num_pairs, *like.shape[1:]), like.dtype)
        for name, like in (("x0", x0), ("x1", x1))
    ]
    _write(files, partial, description, done, (source, sample, params, cond), chunk_size, progress)
    finish(partial, directory, description)
    return open_pairs(directory, params)


def open_pairs(directory: str | os.PathLike[str], params: Params) -> Pairs:
    """Pairs that `make_pairs` has made of a model with these parameters.

    Args:
        directory: where they lie.
        params: the parameters that made them.

    Raises:
        ValueError: if there are no finished pairs, or they were made by another model.
    """
    directory = Path(directory).absolute()
    description = description_of(directory)
    if description is None:
        begun = partial_of(directory)
        hint = f", but some in {begun}: make_pairs goes on with them" if begun.exists() else ""
        raise ValueError(f"{directory} holds no finished pairs{hint}.")
    check_same(directory, description, {"model": fingerprint(params)})
    x0, x1 = (open_array(directory / f"{name}.npy") for name in ("x0", "x1"))
    return Pairs(x0, x1, read_cond(directory, description["cond"]), description["model"])


def _write(
    files: list[ArrayFile],
    partial: Path,
    description: Mapping[str, Any],
    done: int,
    model: tuple[Source, Sample, Params, Any],
    chunk_size: int,
    progress: bool,
) -> None:
    """Makes the pairs that are missing."""
    source, sample, params, cond = model
    num_pairs = description["num_pairs"]
    key = jax.random.key(description["seed"])

    @jax.jit
    def make(key: Key[Array, ""], rows: Array, params: Params, row_cond: Any) -> tuple[Array, Array]:
        x0, _ = source(jax.vmap(lambda row: jax.random.fold_in(key, row))(rows))
        return x0, sample(params, x0, row_cond)

    with tqdm(total=num_pairs, initial=done, desc="pairs", unit="pair", disable=not progress) as bar:
        for start in range(done, num_pairs, chunk_size):
            stop = min(start + chunk_size, num_pairs)
            # The last chunk is filled up, so that all run the same program.
            rows = np.minimum(np.arange(start, start + min(chunk_size, num_pairs)), num_pairs - 1)
            made = make(key, rows, params, jax.tree.map(lambda leaf, rows=rows: leaf[rows], cond))
            ends = [np.asarray(_kept(end))[: stop - start] for end in made]
            _check_finite(start, *ends)
            for file, end in zip(files, ends, strict=True):
                file.write(start, end)
            note_rows(partial, description, stop)
            bar.update(stop - start)


def _check_finite(start: int, *ends: np.ndarray) -> None:
    for name, rows in zip(("sources", "samples"), ends, strict=True):
        bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{len(bad)} {name} of a chunk of {len(rows)} are not finite, the first of them pairs "
                f"{(start + bad[:5]).tolist()}: look at the model's samples there. The pairs before are kept."
            )


def _kept(rows: Array) -> Array:
    """In a dtype that NumPy's files hold: half precision in float32."""
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def _like(source: Source, sample: Sample, params: Params, cond: Any) -> list[jax.ShapeDtypeStruct]:
    """One row of both ends, traced."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    x0, source_cond = jax.eval_shape(source, keys)
    if source_cond is not None:
        raise ValueError("the source draws conditions of its own, which pairs do not keep: give one without.")
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), cond)
    x1 = jax.eval_shape(sample, params, x0, row)
    if getattr(x1, "shape", None) != x0.shape:
        raise ValueError(
            f"sample must return one sample for each x0, an array of shape {x0.shape}, got "
            f"{getattr(x1, 'shape', type(x1).__name__)}: of a sampler's result give its field x."
        )
    return [jax.eval_shape(_kept, end) for end in (x0, x1)]


def _begin(partial: Path, description: Mapping[str, Any], cond: Any) -> None:
    """An empty directory of pairs, with their conditions."""
    partial.mkdir(parents=True, exist_ok=True)
    for leftover in partial.iterdir():
        leftover.unlink()
    for name, file in cond_files(description["cond"]).items():
        np.save(partial / file, np.asarray(cond if name is None else cond[name]))


def _names_of(cond: Any) -> list[str] | str | None:
    """Names of the entries of conditions, as the description has them."""
    if cond is None:
        return None
    if not isinstance(cond, Mapping):
        if jax.tree.structure(cond) != jax.tree.structure(0):
            raise ValueError(f"cond must be an array or a dict of arrays by name, got {type(cond).__name__}.")
        return "array"
    if not all(isinstance(name, str) and name.isidentifier() for name in cond) or any(
        jax.tree.structure(leaf) != jax.tree.structure(0) for leaf in cond.values()
    ):
        raise ValueError(f"cond must be a dict of arrays by names that are identifiers, got {list(cond)}.")
    return sorted(cond)


def _as_json(settings: Mapping[str, Any] | None) -> Any:
    """Settings as they come back from a file."""
    try:
        return json.loads(json.dumps(dict(settings or {})))
    except TypeError as error:
        raise ValueError(f"settings must be what JSON can hold: {error}.") from error

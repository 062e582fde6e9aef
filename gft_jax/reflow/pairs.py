"""Pairs of noise and what a model makes of it, made in chunks and kept on disk."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import jax
import numpy as np
from tqdm import tqdm

from gft_jax.checkpoints import fingerprint
from gft_jax.data import open_array
from gft_jax.pairing import Source
from gft_jax.pairing.checks import check_cond, check_integer
from gft_jax.reflow.files import (
    ArrayFile,
    begin,
    check_free,
    check_same,
    cond_files,
    description_of,
    finish,
    note_rows,
    partial_of,
    read_cond,
    rows_done,
)
from gft_jax.reflow.making import Make, Sample, check_finite, ends_like, maker
from gft_jax.types import Params

_SAME = 1e-2
"""Relative distance below which a pair made again is the same: above rounding on another device, also in bfloat16."""


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
    num_pairs: SupportsIndex,
    seed: SupportsIndex,
    cond: Any = None,
    settings: Mapping[str, Any] | None = None,
    chunk_size: SupportsIndex = 1024,
    progress: bool = True,
) -> Pairs:
    """Pairs ``(x0, flow(x0))`` of a model, written to a directory a chunk at a time, and opened.

    Killed in the middle, the same call goes on where it was: pair i depends on seed, i, model and condition alone. The
    pairs get their name when all are there; until then they lie in ``<directory>.partial``. Called again for pairs that
    are there, it opens them. A program of one process makes them.

    Parameters, conditions and settings are compared by their content before it goes on or opens. Functions cannot be:
    pair 0 is made again, and must be that on disk to one hundredth of its size. A source or sampler that changes it by
    less, such as a few more steps of an accurate solver, goes unnoticed unless it is told by ``settings``.

    A sampler that gives up in the middle returns where it was, which is no sample. With adaptive steps let such rows be
    refused, ``jnp.where(result.succeeded, result.x, jnp.nan)``; fixed steps do not give up.

    Args:
        directory: where they are to lie; not there yet, or of these very pairs.
        sample: the model's flow from noise to data, called under jit; deterministic.
        params: parameters of the model; their content is kept as its fingerprint.
        source: draws x0, such as `gft_jax.pairing.standard_normal`, without conditions of its own. Arrays of a source
            that is a pytree are arguments of the program.
        num_pairs: number of pairs, >= 1.
        seed: of the sources.
        cond: conditions of the pairs, an array ``[num_pairs, ...]`` or a dict of such, or None; in a dtype of NumPy's
            own (not bfloat16).
        settings: what else the pairs depend on, anything that JSON can hold, such as ``{"num_steps": 100}``: pairs made
            under other settings are refused.
        chunk_size: pairs that are made at once, >= 1.
        progress: whether to show a bar of the pairs.

    Raises:
        ValueError: for counts below one, a negative seed, conditions of another number of rows or dtype, a source with
            conditions or samples of another shape; for pairs of another model in the directory, or made otherwise; for
            samples that are not finite (says which; those before are kept); in a program of several processes.
        FileExistsError: if the directory, or ``<directory>.partial``, is or holds something else.
    """
    directory = Path(directory).absolute()
    if jax.process_count() > 1:
        raise ValueError(
            f"make_pairs is for a program of one process, and this one has {jax.process_count()}: make the pairs in "
            "one of its own, and open them in each process by open_pairs."
        )
    check_integer("num_pairs", num_pairs, 1)
    check_integer("chunk_size", chunk_size, 1)
    check_integer("seed", seed, 0)
    num_pairs, chunk_size, seed = int(num_pairs), int(chunk_size), int(seed)
    check_cond("cond", cond, num_pairs)
    names = _names_of(cond)
    like = ends_like(source, sample, params, cond)
    description = {
        "model": fingerprint(params),
        "num_pairs": num_pairs,
        "event_shape": list(like[0].shape[1:]),
        "dtypes": [end.dtype.name for end in like],
        "seed": seed,
        "cond": names,
        "cond_content": None if cond is None else fingerprint(jax.tree.map(np.asarray, cond)),
        "settings": _as_json(settings),
    }

    def files_in(folder: Path) -> list[ArrayFile]:
        return [
            ArrayFile(folder / f"{name}.npy", (num_pairs, *end.shape[1:]), end.dtype)
            for name, end in zip(("x0", "x1"), like, strict=True)
        ]

    make = maker(source, sample, params, cond, seed)
    there = description_of(directory)
    if there is not None:
        check_same(directory, there, description)
        _check_first(directory, files_in(directory), num_pairs, make)
        return open_pairs(directory, params)
    partial = partial_of(directory)
    check_free(directory, partial)
    done, files = rows_done(partial, description), files_in(partial)
    if done > 0:
        _check_first(partial, files, done, make)
    else:
        arrays: Any = cond  # none where there are no conditions
        cond_arrays = {
            file: np.asarray(arrays if name is None else arrays[name])
            for name, file in cond_files(names).items()
        }
        begin(partial, description, files, cond_arrays)
    _write(files, partial, description, done, make, chunk_size, progress)
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
    make: Make,
    chunk_size: int,
    progress: bool,
) -> None:
    """Makes the pairs that are missing."""
    num_pairs = description["num_pairs"]
    with tqdm(total=num_pairs, initial=done, desc="pairs", unit="pair", disable=not progress) as bar:
        for start in range(done, num_pairs, chunk_size):
            stop = min(start + chunk_size, num_pairs)
            # The last chunk is filled up, so that all run the same program.
            rows = np.minimum(np.arange(start, start + min(chunk_size, num_pairs)), num_pairs - 1)
            ends = [end[: stop - start] for end in make(rows)]
            check_finite(start, *ends)
            for file, end in zip(files, ends, strict=True):
                file.write(start, end)
            note_rows(partial, description, stop)
            bar.update(stop - start)


def _check_first(folder: Path, files: list[ArrayFile], num_rows: int, make: Make) -> None:
    """Refuses pairs of another source or sampler, by the first of them.

    Raises:
        ValueError: if pair 0 is another now, or rows that are said to be there are not.
    """
    for file in files:
        file.check_rows(num_rows)
    for argument, file, end in zip(("source", "sample"), files, make(np.zeros(1, int)), strict=True):
        there = file.read(0, 1)
        distance, size = (float(np.linalg.norm(rows.ravel())) for rows in (end - there, there))
        if not distance <= _SAME * size:
            raise ValueError(
                f"the pairs in {folder} were made otherwise: made again, the end of pair 0 that comes of {argument} "
                f"lies {distance:.3g} from that on disk, whose size is {size:.3g}. Give the {argument} that made them, "
                "or choose another directory."
            )


def _names_of(cond: Any) -> list[str] | str | None:
    """Names of the entries of conditions, as the description has them."""
    if cond is None:
        return None
    is_named = isinstance(cond, Mapping)
    for leaf in cond.values() if is_named else (cond,):
        if jax.tree.structure(leaf) != jax.tree.structure(0):
            raise ValueError(f"cond must be an array or a dict of arrays by name, got {type(cond).__name__}.")
        if not isinstance(leaf.dtype, np.dtype) or leaf.dtype.kind not in "biufc":
            raise ValueError(
                f"cond holds an array of dtype {leaf.dtype}, which files of NumPy do not keep: give numbers of a dtype "
                "of NumPy's own, such as float32."
            )
    if not is_named:
        return "array"
    if not all(isinstance(name, str) and name.isidentifier() for name in cond):
        raise ValueError(f"cond must be a dict of arrays by names that are identifiers, got {list(cond)}.")
    return sorted(cond)


def _as_json(settings: Mapping[str, Any] | None) -> Any:
    """Settings as they come back from a file."""
    try:
        return json.loads(json.dumps(dict(settings or {})))
    except TypeError as error:
        raise ValueError(f"settings must be what JSON can hold: {error}.") from error

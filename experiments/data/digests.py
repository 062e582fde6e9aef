"""What tells the images or latents of a run from others, so that a run is not continued or judged on other data.

Of a folder these are the names and sizes of all files, and the bytes of up to `NUM_READ` of them, always the same ones
and all where there are no more: a folder of a million images is told without reading it again. Times of change are left
out: a copy of the same files is the same data. What cannot be noticed is another image of the same name and the same
number of bytes among those that are not read; where a share s of the images were replaced by such, the probability is
``(1 - s)^NUM_READ``. Of latents it is the checksum (CRC-32) of the array that the file itself holds, which does not see
an array that was changed in place, through a memory map.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run_folder import differences

NUM_READ = 1024
"""Files whose bytes are read."""
_SEED = 20_261_203
_THREADS = 16  # file systems of a network take long to answer, but answer many at a time


def of_folder(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Digests of these files of a folder, by what they are of.

    Raises:
        OSError: if one of them cannot be read.
    """
    paths = [folder / name for name in names]
    read = np.sort(np.random.default_rng(_SEED).permutation(len(paths))[:NUM_READ])
    portions = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [
            size
            for each in pool.map(lambda some: [p.stat().st_size for p in some], portions)
            for size in each
        ]
        contents = list(pool.map(_digest_of_file, [paths[place] for place in read]))
    return {
        "names": digest("\n".join(names).encode()),
        "file sizes": digest(np.array(sizes, np.int64).tobytes()),
        "contents": digest(b"".join(contents)),
    }


def of_latents(file: Path) -> dict[str, str]:
    """Digest of the array ``latents`` of a ``.npz`` file."""
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo("latents.npy")
    return {"contents": f"{info.CRC:08x} {info.file_size}"}


def digest(content: bytes) -> str:
    """64 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:16]


def check_same(run: Path, begun: Any, here: Mapping[str, str]) -> None:
    """Refuses other data than those that a run was begun on.

    Args:
        run: its folder, for the message.
        begun: what its config.json says of its data.
        here: the same of the data that there are.

    Raises:
        ValueError: that says what differs.
    """
    if not isinstance(begun, dict):
        raise ValueError(
            f"{run} was begun by a version that did not write down what its data are: start another run"
        )
    if differing := differences(begun, here, dict.fromkeys([*here, *begun])):
        raise ValueError(
            f"{run} was begun on other images; those of its --data differ in\n  "
            + "\n  ".join(differing)
            + "\nRestore them, or start another run"
        )


def _digest_of_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

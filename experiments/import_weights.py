"""Weights of SiT in PyTorch into a folder of parameters that `gft_jax.load` reads and training starts from.

python -m experiments.import_weights SiT-XL-2-256x256.pt runs/sit-xl

The network is read from the shapes of the weights. Weights of DiT have the same names and shapes, so that only you can
tell them apart; what they predict is noise, at times in steps. Import them with `--predicts noise`: the programs then
refuse the folder, and your own code makes a velocity of what `gft_jax.load` gives, by
`gft_jax.drifts.from_convention`.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from experiments.files import write_atomically
from gft_jax.checkpoints import save_params
from gft_jax.interop import read_state_dict, sit_of, sit_params
from gft_jax.loading import describe_model, params_folder

_CHUNK = 2**24
_TAKEN_AS = {
    "velocity": "It is taken as a velocity in flow time: t = 0 noise, t = 1 data. The weights do not show that; those "
    "of DiT predict noise, and are imported with --predicts noise.",
    "noise": "It predicts noise at times in steps: the programs refuse the folder. In your own code the velocity is "
    "gft_jax.drifts.from_convention(gft_jax.load(FOLDER).drift, time, path, gft_jax.paths.velocity_from_noise, "
    "ends=...), with time and path those of its training.",
}


@dataclass(frozen=True)
class ImportWeights:
    """Import weights of SiT from PyTorch."""

    file: Annotated[Path, tyro.conf.Positional]
    """The weights: .safetensors (extra "weights"), or .pt or .pth (extra "torch")."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder that is made: RUN of `gft_jax.load(RUN)`."""
    entry: str | None = None
    """Which of the state dicts of a file that holds several; default ema, the averaged weights, where there is one."""
    num_heads: int | None = None
    """Heads of attention, which the weights do not show; default those of the published size."""
    predicts: Literal["velocity", "noise"] | None = None
    """What the network predicts, which the weights do not show: SiT a velocity in flow time, DiT noise at times in
    steps. Default velocity; a file whose name begins with DiT is taken by an answer alone."""


def import_weights(config: ImportWeights) -> str:
    """Reads, checks and converts the weights, writes the folder, and says what was found.

    Raises:
        ImportError: what reads the file is not installed.
        OSError: the file cannot be read, or the folder holds something.
        ValueError: the file is no whole state dict of SiT or DiT, naming the entries that do not fit; its name is that
            of DiT's weights, and it is not said what they predict.
    """
    if config.predicts is None and config.file.name.lower().startswith("dit"):
        raise ValueError(
            f"{config.file.name} is named like weights of DiT, which predict noise, and the weights do not show it: "
            "give --predicts noise, or --predicts velocity if these were trained to predict one in flow time"
        )
    predicts = config.predicts or "velocity"
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise FileExistsError(f"{config.out} holds something already: import to another folder, or remove it")
    state = read_state_dict(config.file, config.entry)
    module, event_shape = sit_of(state, config.num_heads)
    params = sit_params(state, module, event_shape)
    facts = {
        "experiment": "import_weights",
        "methods": ["base"],
        "seeds": [],
        "file": config.file.name,
        "sha256": _sha256(config.file),
        "entry": config.entry,
        "predicts": predicts,
    }
    save_params(params_folder(config.out, "base"), params)
    describe_model(config.out, module, event_shape)
    write_atomically(config.out / "config.json", json.dumps(facts, indent=2) + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    height, width, channels = event_shape
    told = ("hidden_size", "depth", "num_heads", "patch_size", "num_classes", "learn_sigma")
    network = ", ".join(f"{name}={getattr(module, name)}" for name in told)
    found = f"SiT({network}), {count:,} parameters, for images {height} x {width} x {channels}"
    return f"{found}\n{_TAKEN_AS[predicts]}"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def main() -> int:
    """Imports the file named on the command line; returns the exit status."""
    config = tyro.cli(ImportWeights, prog="python -m experiments.import_weights", description=__doc__)
    try:
        print(import_weights(config))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f'written to {config.out}: gft_jax.load("{config.out}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())

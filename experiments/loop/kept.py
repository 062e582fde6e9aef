"""Parameters that a run keeps: those of its base, and those that each method ends with."""

from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from gft_jax.checkpoints import Unreadable, agreed, has_params, load_params, save_params, set_aside
from gft_jax.types import Params


def found(folder: Path, like: Params) -> Params | None:
    """Parameters kept before, or None; those that cannot be read are set aside, and this is said."""
    if not has_params(folder):
        return None
    try:
        return load_params(folder, like)
    except Unreadable as error:
        aside = agreed(lambda: str(set_aside(folder)))
        tqdm.write(f"{error}: it is now {aside}, and made again")
        return None


def keep(folder: Path, params: Params) -> None:
    """Saves parameters unless they are there already, from before or from a run at the same time."""
    if has_params(folder):
        return
    if folder.is_dir() and any(folder.iterdir()):
        tqdm.write(f"{folder} was cut short or damaged; it is set aside, and made again")
    with suppress(FileExistsError):
        save_params(folder, params)

"""The copy of its base that a run keeps, by which it is continued and judged without the base."""

from pathlib import Path

from experiments.files import read_json
from experiments.images.networks import Pretrained
from gft_jax.checkpoints import has_params
from gft_jax.loading import described_model, params_folder


def own_base(run: Path) -> Pretrained | None:
    """The base of a run as its folder holds it; None where the run was ended before it was copied.

    Its classes are those of the run, which were numbered as the base's.

    Raises:
        ValueError: if the folder does not say what network it is.
    """
    if not has_params(params_folder(run, "base")):
        return None
    described = described_model(run)
    facts = read_json(run / "config.json")
    classes, path = tuple(facts.get("classes", ())), facts.get("config", {}).get("path")
    return Pretrained(run, "base", described.module, described.event_shape, classes, path)

"""Fine-tuning of a network on a new domain of a WILDS benchmark: another hospital, experiment or region.

    python -m experiments.train wilds --root data --pretrain --out runs/wilds/base
    python -m experiments.train wilds --root data --base runs/wilds/base

The first trains on the split "train" of the benchmark, the second fine-tunes on another, by default "test", whose
domains are not those of training. Of either, the share --held-out is drawn at random to judge by; the in-distribution
splits of the benchmark are splits by themselves, and part of neither. The data must have been downloaded by the package
``wilds``; see `experiments.data.wilds` for the splits and the layouts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from experiments.configs.images import Images
from experiments.configs.settings import require
from experiments.data.image_rows import LabelledRows, Layout
from experiments.data.listed_images import index_file_of
from experiments.data.wilds import WildsName, wilds_rows


@dataclass(frozen=True)
class Wilds(Images):
    """Pretrain a network on the training domains of a WILDS benchmark, or fine-tune one on another domain of it.

    Classes are those of the benchmark. Results go to a fresh numbered folder runs/wilds/NNN; open its report.html. A
    finished run is itself a --base.
    """

    dataset: WildsName = "camelyon17"
    """camelyon17: tissue by hospital; rxrx1: cells by experiment; fmow: satellite images by year and region."""
    root: str = "data"
    """Folder that holds the downloaded folder of the benchmark, such as camelyon17_v1.0."""
    domain: str = "test"
    """What to fine-tune on: the split test or val, or one hospital (1, 2), experiment (such as HEPG2-08) or region
    (such as Africa) of them; or train, id_val or id_test, whose domains are those of training. With --pretrain it is
    train."""
    num_images: int | None = None
    """Images at most, drawn at random, always the same ones; by default all."""
    folder: tyro.conf.Suppress[str] = ""
    mode: tyro.conf.Suppress[None] = None
    layout: tyro.conf.Suppress[Layout] = "nhwc"
    classes: tyro.conf.Suppress[tuple[str, ...]] = ()

    experiment: ClassVar[str] = "wilds"

    def check(self) -> None:
        """Refuses settings that cannot work."""
        super().check()
        for name in ("folder", "mode", "layout", "classes"):
            is_default = getattr(self, name) == getattr(type(self), name)
            require(is_default, name, getattr(self, name), "the default, which is that of the benchmark")
        fits = not self.pretrain or self.domain in ("train", type(self).domain)
        require(fits, "domain", self.domain, "train, with --pretrain")
        require(self.num_images is None or self.num_images >= 4, "num_images", self.num_images, "at least 4")

    def rows(self, classes: tuple[str, ...]) -> LabelledRows:
        """Images of the split "train" with --pretrain, else of the new domain."""
        domain = "train" if self.pretrain else self.domain
        kept = f"{self.dataset}-{domain}-{self.num_images or 'all'}"
        return wilds_rows(
            Path(self.root),
            self.dataset,
            domain,
            size=self.size,
            num_images=self.num_images,
            index_file=index_file_of(Path(self.root) / kept, Path("runs") / self.experiment),
        )

    def facts(self) -> dict[str, Any]:
        """The shift."""
        return {"shift": f"{self.dataset}, domain {'train' if self.pretrain else self.domain}"}

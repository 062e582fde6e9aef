"""Images of three WILDS benchmarks from the folders that the package ``wilds`` downloads, in its official splits.

The image and the split of each row of a folder's table are those of the package (2.0, ``split_scheme="official"``), and
rows that it puts into no split are left out:

* ``camelyon17_v1.0``: ``metadata.csv`` (columns patient, node, x_coord, y_coord, tumor, center, split, among others)
  and ``patches/patient_P_node_N/patch_patient_P_node_N_x_X_y_Y.png``, 96 x 96 in colour. Classes: tumor 0 or 1. Groups:
  the hospitals, column center. Hospital 1 is "val" and hospital 2 is "test", whatever the column split says; of
  hospitals 0, 3 and 4 it says which rows are "train" (0) and which "id_val" (1).
* ``rxrx1_v1.0``: ``metadata.csv`` (experiment, plate, well, site, sirna_id, dataset, among others) and
  ``images/EXPERIMENT/PlateP/WELL_sSITE.png``, 256 x 256 in colour. Classes: 1139 genetic treatments. Groups: the
  experiments. The column dataset says which are "val" and "test", with both sites of each well; of those that it calls
  "train", site 1 is "train" and site 2 is "id_test".
* ``fmow_v1.1``: ``rgb_metadata.csv`` (category, country_code, timestamp, split, among others; the number of a row,
  from 0, is that of its image) and ``images/rgb_img_ROW.png``, 224 x 224 in colour; ``country_code_mapping.csv``
  (alpha-3, region). Classes: 62 categories of land use, sorted by name. Groups: the regions, "Other" for countries
  without one. Years are those of the timestamp in UTC. Before 2013 the column split is followed: its train, val and
  test are "train", "id_val" and "id_test". Of 2013 to 2015 its val is "val", from 2016 on its test is "test"; all other
  later rows are in no split, nor are any whose column split is "seq".

A base is trained on "train". What it is fine-tuned on lies out of its domains: "test", "val", or a group, which is its
rows in "val" and "test". "id_val" and "id_test" are other rows of the training domains.

Splits and names of files were compared with the code of the package, not with the downloads themselves, which take 10,
7 and 50 GB.
Source: Koh et al., "WILDS: a benchmark of in-the-wild distribution shifts", arXiv:2012.07421.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from experiments.data import digests
from experiments.data.csv_lines import Line, lines_of
from experiments.data.image_rows import LabelledRows
from experiments.data.listed_images import ListedImages

WildsName = Literal["camelyon17", "rxrx1", "fmow"]
Split = Literal["train", "id_val", "id_test", "val", "test"]

_UNSEEN: tuple[Split, ...] = ("val", "test")
"""The splits whose domains are not those of training."""
_SUBSET_SEED = 20_261_202
_OTHER_REGION = "Other"
_UNSEEN_CENTERS: dict[int, Split] = {1: "val", 2: "test"}
_ID_SPLITS: dict[str, Split] = {"train": "train", "val": "id_val", "test": "id_test"}
"""Splits of FMoW within the years of training, by what its column split says."""


class Row(NamedTuple):
    """One image of a table."""

    name: str
    """Path of the image below the folder."""
    label: str
    """Its class."""
    split: Split | None
    """None of a row that the package does not use."""
    group: str
    """Its hospital, experiment or region."""

    @property
    def domains(self) -> tuple[str, ...]:
        """All names by which it can be asked for."""
        if self.split is None:
            return ()
        return (self.split, self.group) if self.split in _UNSEEN else (self.split,)


def _camelyon17(line: Line, number: int, regions: dict[str, str]) -> Row:
    patient, node = line.text("patient"), line.integer("node")
    slide = f"patient_{patient}_node_{node}"
    place = f"x_{line.integer('x_coord')}_y_{line.integer('y_coord')}"
    center = line.integer("center", range(5))
    split = _UNSEEN_CENTERS.get(center)
    if split is None:
        split = "id_val" if line.integer("split", range(2)) else "train"
    label = str(line.integer("tumor", range(2)))
    return Row(f"patches/{slide}/patch_{slide}_{place}.png", label, split, str(center))


def _rxrx1(line: Line, number: int, regions: dict[str, str]) -> Row:
    experiment, well, site = line.text("experiment"), line.text("well"), line.integer("site", range(1, 3))
    name = f"images/{experiment}/Plate{line.integer('plate')}/{well}_s{site}.png"
    column = line.one_of("dataset", ("train", "val", "test"))
    split: Split = "id_test" if column == "train" and site == 2 else column
    return Row(name, str(line.integer("sirna_id")), split, experiment)


def _fmow(line: Line, number: int, regions: dict[str, str]) -> Row:
    year, column = line.year("timestamp"), line.one_of("split", ("train", "val", "test", "seq"))
    if year < 2013:
        split = _ID_SPLITS.get(column)
    else:
        unseen: Split = "val" if year < 2016 else "test"
        split = unseen if column == unseen else None
    region = regions.get(line.any_text("country_code")) or _OTHER_REGION
    return Row(f"images/rgb_img_{number}.png", line.text("category"), split, region)


class _Benchmark(NamedTuple):
    """How a benchmark lies on disk."""

    folder: str
    table: str
    columns: tuple[str, ...]
    """Those of the table that are read."""
    row: Callable[[Line, int, dict[str, str]], Row]
    """From a line of it, its number from 0, and regions by code of country."""


_BENCHMARKS: dict[WildsName, _Benchmark] = {
    "camelyon17": _Benchmark(
        "camelyon17_v1.0",
        "metadata.csv",
        ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split"),
        _camelyon17,
    ),
    "rxrx1": _Benchmark(
        "rxrx1_v1.0",
        "metadata.csv",
        ("experiment", "plate", "well", "site", "sirna_id", "dataset"),
        _rxrx1,
    ),
    "fmow": _Benchmark(
        "fmow_v1.1", "rgb_metadata.csv", ("category", "country_code", "timestamp", "split"), _fmow
    ),
}


def wilds_rows(
    root: Path,
    dataset: WildsName,
    domain: str,
    *,
    size: int | None = None,
    num_images: int | None = None,
    index_file: Path | None = None,
) -> LabelledRows:
    """The images of a domain, in colour and in the order of the table.

    Classes are those of the whole table, so that they have the same numbers in all domains.

    Every folder that should hold some of the images is listed once, so that one that is missing is known before any
    is read; then the first is read, and the others when they are opened (`LabelledRows.opened`).

    Args:
        root: the folder that holds that of the benchmark.
        dataset: the benchmark.
        domain: a split ("train", "id_val", "id_test", "val", "test", as far as the benchmark has it), or one hospital,
            experiment or region: its rows in "val" and "test".
        size: to which images are cropped and resized; None for theirs.
        num_images: at most so many, drawn at random, always the same ones; None for all.
        index_file: where what the images are is kept, so that they are not all read again the next time.

    Raises:
        ValueError: if the benchmark is not there (how to download it), its table lacks columns, a line of it lacks
            fields or has one that cannot be (which, and what is expected), there is no such domain (which there are),
            or images are missing (the first of them) or cannot be read.
    """
    benchmark = _BENCHMARKS[dataset]
    folder = root / benchmark.folder
    rows = _rows_of(folder, dataset)
    classes = tuple(sorted({row.label for row in rows}, key=_natural))
    numbers = {name: number for number, name in enumerate(classes)}
    chosen = [row for row in rows if domain in row.domains]
    if not chosen:
        there = sorted({name for row in rows for name in row.domains}, key=_natural)
        raise ValueError(f"--domain is {domain!r}; {folder} has: {', '.join(there)}")
    if num_images is not None and num_images < len(chosen):
        index = np.random.default_rng(_SUBSET_SEED).permutation(len(chosen))[:num_images]
        chosen = [chosen[number] for number in np.sort(index)]
    names = [row.name for row in chosen]
    missing = _missing(folder, names)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images of {domain} are missing, which {folder / benchmark.table} names; "
            f"the first is {folder / missing[0]}: {_how(dataset)}"
        )
    labels = np.array([numbers[row.label] for row in chosen], np.int32)
    found = ListedImages(folder, names, size=size, mode="RGB", index_file=index_file)
    return LabelledRows(
        found, labels, classes, partial(digests.of_folder, folder, names), has_own_numbers=True
    )


def _rows_of(folder: Path, dataset: WildsName) -> list[Row]:
    benchmark, how, regions = _BENCHMARKS[dataset], _how(dataset), {}
    if dataset == "fmow":
        countries = lines_of(folder / "country_code_mapping.csv", ("alpha-3", "region"), how)
        regions = {line.text("alpha-3"): line.any_text("region") for line in countries}
    table = folder / benchmark.table
    lines = lines_of(table, benchmark.columns, how)
    rows = [benchmark.row(line, number, regions) for number, line in enumerate(lines)]
    if not rows:
        raise ValueError(f"{table} has no rows: {how}")
    return rows


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Those that are not in their folders, each of which is listed once: half a million files take a second so."""
    there: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in there:
            there[parent] = set(os.listdir(folder / parent)) if (folder / parent).is_dir() else set()
        if file not in there[parent]:
            missing.append(name)
    return missing


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before other names."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)


def _how(dataset: WildsName) -> str:
    return (
        'download it by the package wilds (pip install wilds; python -c "import wilds; '
        f"wilds.get_dataset('{dataset}', root_dir='data', download=True)\"), and give --root data"
    )

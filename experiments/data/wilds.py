"""Images of three WILDS benchmarks from the folders that the package ``wilds`` downloads, divided by domain.

Each reads the table of its folder with the csv module, and names the image of each row as the package does:

* ``camelyon17_v1.0``: ``metadata.csv`` (columns patient, node, x_coord, y_coord, tumor, center, among others) and
  ``patches/patient_P_node_N/patch_patient_P_node_N_x_X_y_Y.png``, 96 x 96 in colour. Classes: tumor 0 or 1.
  Domains: hospitals 0 to 4; 0, 3 and 4 are for training, 1 is "val", 2 is "test".
* ``rxrx1_v1.0``: ``metadata.csv`` (experiment, plate, well, site, sirna_id, dataset, among others) and
  ``images/EXPERIMENT/PlateP/WELL_sSITE.png``, 256 x 256 in colour. Classes: 1139 genetic treatments. Domains:
  experiments; the column dataset says which are for training ("train"), "val" and "test".
* ``fmow_v1.1``: ``rgb_metadata.csv`` (category, country_code, timestamp, split, among others; the number of a row,
  from 0, is that of its image) and ``images/rgb_img_ROW.png``, 224 x 224 in colour; ``country_code_mapping.csv``
  (alpha-3, region). Classes: categories of land use, sorted by name. Domains: years before 2013 are for training,
  2013 to 2015 are "val", later ones "test"; a region is that of 2013 and later. Rows whose split is "seq" are left out.

The layouts are written down from knowledge of the package (2.0) and were checked on small folders of the same form, not
on the downloads themselves, which take 10, 7 and 50 GB. Least sure are the names of the columns ``well``, ``site`` and
``plate`` of RxRx1 and that FMoW leaves out "seq"; a column or an image that is not there is an error that names it.
Source: Koh et al., "WILDS: a benchmark of in-the-wild distribution shifts", arXiv:2012.07421.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

import gft_jax as gft
from experiments.data import digests
from experiments.data.image_rows import LabelledRows

WildsName = Literal["camelyon17", "rxrx1", "fmow"]

FOLDERS: dict[WildsName, str] = {"camelyon17": "camelyon17_v1.0", "rxrx1": "rxrx1_v1.0", "fmow": "fmow_v1.1"}
_SUBSET_SEED = 20_261_202


class Row(NamedTuple):
    """One image of a table."""

    name: str
    """Path of the image below the folder."""
    label: str
    """Its class."""
    domains: tuple[str, ...]
    """All names by which it can be asked for; "train" among them where it is of a training domain."""


def _camelyon17(row: dict[str, str], number: int, regions: dict[str, str]) -> Row:
    slide = f"patient_{row['patient']}_node_{row['node']}"
    name = f"patches/{slide}/patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"
    split = {"1": "val", "2": "test"}.get(row["center"], "train")
    return Row(name, row["tumor"], (row["center"], split))


def _rxrx1(row: dict[str, str], number: int, regions: dict[str, str]) -> Row:
    name = f"images/{row['experiment']}/Plate{row['plate']}/{row['well']}_s{row['site']}.png"
    return Row(name, row["sirna_id"], (row["experiment"], row["dataset"]))


def _fmow(row: dict[str, str], number: int, regions: dict[str, str]) -> Row:
    name, year = f"images/rgb_img_{number}.png", int(row["timestamp"][:4])
    if row["split"] == "seq":
        return Row(name, row["category"], ())
    if year < 2013:
        return Row(name, row["category"], ("train",))
    region = regions.get(row["country_code"], "Other")
    return Row(name, row["category"], (region, "val" if year < 2016 else "test"))


_ROWS: dict[WildsName, Callable[[dict[str, str], int, dict[str, str]], Row]] = {
    "camelyon17": _camelyon17,
    "rxrx1": _rxrx1,
    "fmow": _fmow,
}
_TABLES: dict[WildsName, str] = {
    "camelyon17": "metadata.csv",
    "rxrx1": "metadata.csv",
    "fmow": "rgb_metadata.csv",
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
    """The images of a domain, in colour.

    Classes are those of the whole table, so that they have the same numbers in all domains.

    Args:
        root: the folder that holds that of the benchmark.
        dataset: the benchmark.
        domain: "train", "val", "test", or one hospital, experiment or region.
        size: to which images are cropped and resized; None for theirs.
        num_images: at most so many, drawn at random, always the same ones; None for all.
        index_file: where what the images are is kept, so that they are not all read again the next time.

    Raises:
        ValueError: if the benchmark is not there (how to download it), its table has no such column, there is no such
            domain (which there are), or images are missing.
    """
    folder = root / FOLDERS[dataset]
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
    if not (folder / chosen[0].name).is_file():
        raise ValueError(
            f"{folder / chosen[0].name} is missing, which {_TABLES[dataset]} names: {_how(dataset)}"
        )
    names = [row.name for row in chosen]
    labels = np.array([numbers[row.label] for row in chosen], np.int32)
    found = gft.data.image_files(
        folder, names, labels=labels, classes=classes, size=size, mode="RGB", index_file=index_file
    )
    return LabelledRows(found, labels, classes, partial(digests.of_folder, folder, found.names))


def _rows_of(folder: Path, dataset: WildsName) -> list[Row]:
    table = folder / _TABLES[dataset]
    if not table.is_file():
        raise ValueError(f"{table} is missing: {_how(dataset)}")
    try:
        regions = _regions(folder / "country_code_mapping.csv") if dataset == "fmow" else {}
        with table.open(newline="") as file:
            return [_ROWS[dataset](row, number, regions) for number, row in enumerate(csv.DictReader(file))]
    except KeyError as error:
        raise ValueError(f"{table} has no column {error}: is it the table of {FOLDERS[dataset]}?") from error


def _regions(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {_how('fmow')}")
    with path.open(newline="") as file:
        return {row["alpha-3"]: row["region"] for row in csv.DictReader(file)}


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before other names."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)


def _how(dataset: WildsName) -> str:
    return (
        'download it by the package wilds (pip install wilds; python -c "import wilds; '
        f"wilds.get_dataset('{dataset}', root_dir='data', download=True)\"), and give --root data"
    )

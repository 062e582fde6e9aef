"""The layouts of WILDS, in folders of a few images."""

import csv

import numpy as np
import pytest
from PIL import Image
from programs import call

from experiments import train
from experiments.configs.wilds import Wilds
from experiments.data.wilds import wilds_rows

_TIMES = ("2009-05-01T10:00:00Z", "2014-05-01T10:00:00Z", "2016-01-01T10:00:00Z", "2017-01-01T10:00:00Z")


def write(folder, table, rows, names):
    """A table, and an image of one colour for each row: its number in the red channel."""
    folder.mkdir(parents=True)
    with (folder / table).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four or five images of each benchmark; numbers of patients keep their zeros."""
    root = tmp_path_factory.mktemp("wilds")
    rows = [
        {
            "": i,
            "patient": "004",
            "node": 4,
            "x_coord": 96 * i,
            "y_coord": 32,
            "tumor": i % 2,
            "slide": 0,
            "center": c,
        }
        | {"split": 0}
        for i, c in enumerate((0, 3, 1, 2, 4))
    ]
    names = [
        f"patches/patient_004_node_4/patch_patient_004_node_4_x_{96 * i}_y_32.png" for i in range(len(rows))
    ]
    write(root / "camelyon17_v1.0", "metadata.csv", rows, names)
    plates = (("HEPG2-01", "train"), ("HEPG2-01", "train"), ("U2OS-04", "val"), ("RPE-08", "test"))
    rows = [
        {
            "site_id": i,
            "cell_type": name[:4],
            "dataset": split,
            "experiment": name,
            "plate": 2,
            "well": f"B0{i}",
        }
        | {"site": 1, "sirna": f"s{i}", "sirna_id": 10 * i}
        for i, (name, split) in enumerate(plates)
    ]
    names = [f"images/{row['experiment']}/Plate2/{row['well']}_s1.png" for row in rows]
    write(root / "rxrx1_v1.0", "metadata.csv", rows, names)
    kinds = (
        ("zoo", "train", "KEN"),
        ("airport", "val", "KEN"),
        ("zoo", "test", "XXX"),
        ("airport", "seq", "KEN"),
    )
    rows = [
        {"split": split, "category": name, "country_code": code, "timestamp": time}
        for (name, split, code), time in zip(kinds, _TIMES, strict=True)
    ]
    write(root / "fmow_v1.1", "rgb_metadata.csv", rows, [f"images/rgb_img_{i}.png" for i in range(4)])
    (root / "fmow_v1.1" / "country_code_mapping.csv").write_text("name,alpha-3,region\nKenya,KEN,Africa\n")
    return root


@pytest.mark.parametrize(
    ("dataset", "domain", "numbers", "labels", "classes"),
    [
        ("camelyon17", "train", [0, 1, 4], [0, 1, 0], ("0", "1")),
        ("camelyon17", "test", [3], [1], ("0", "1")),
        ("camelyon17", "1", [2], [0], ("0", "1")),
        ("rxrx1", "train", [0, 1], [0, 1], ("0", "10", "20", "30")),
        ("rxrx1", "RPE-08", [3], [3], ("0", "10", "20", "30")),
        ("fmow", "train", [0], [1], ("airport", "zoo")),
        ("fmow", "Africa", [1], [0], ("airport", "zoo")),
        ("fmow", "test", [2], [1], ("airport", "zoo")),
        ("fmow", "Other", [2], [1], ("airport", "zoo")),
    ],
)
def test_the_images_of_a_domain(root, dataset, domain, numbers, labels, classes):
    found = wilds_rows(root, dataset, domain)
    red = np.rint((found.rows[np.arange(len(found.rows))][:, 0, 0, 0] + 1) * 127.5)
    assert red.tolist() == numbers
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes) == (labels, classes)
    assert found.event_shape == (8, 8, 3)


def test_a_subset_is_always_the_same_one(root):
    some = [wilds_rows(root, "camelyon17", "train", num_images=2) for _ in range(2)]
    assert len(some[0].rows) == 2
    assert some[0].fingerprint == some[1].fingerprint


def test_classes_of_a_benchmark_have_its_numbers_for_a_base_that_knows_no_names(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Wilds(root=str(root), dataset="fmow", domain="val", base="base").rows(())
    assert found.numbered_as((), 1000).labels.tolist() == [0]
    assert found.numbered_as(("zoo", "airport"), 2).labels.tolist() == [1]


def test_what_is_not_there_is_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.csv is missing: download it by the package wilds"):
        wilds_rows(tmp_path, "camelyon17", "test")
    with pytest.raises(ValueError, match=r"--domain is 'nowhere'; .* has: 0, 1, 2, 3, 4, test, train, val"):
        wilds_rows(root, "camelyon17", "nowhere")
    table = (root / "rxrx1_v1.0" / "metadata.csv").read_text()
    (tmp_path / "rxrx1_v1.0").mkdir()
    (tmp_path / "rxrx1_v1.0" / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=r"B03_s1\.png is missing"):
        wilds_rows(tmp_path, "rxrx1", "test")
    (tmp_path / "rxrx1_v1.0" / "metadata.csv").write_text(table.replace("sirna_id", "sirna_number"))
    with pytest.raises(ValueError, match="no column 'sirna_id'"):
        wilds_rows(tmp_path, "rxrx1", "test")


def test_the_program_says_how_to_get_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "wilds", "--pretrain") == 2
    assert "get_dataset('camelyon17'" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/wilds/0*"))

"""The layouts of WILDS, in folders of a few images: which rows are in which split, and what is refused."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from programs import call

from experiments import train
from experiments.configs.wilds import Wilds
from experiments.data.wilds import wilds_rows

CENTERS = ((0, 0), (3, 0), (1, 0), (1, 1), (2, 0), (2, 1), (4, 0), (4, 1), (0, 1))
"""Hospital and column split of the patches. What the split says of hospitals 1 and 2 does not count."""
PLATES = (
    *(("HEPG2-01", 1, "train"), ("HEPG2-01", 2, "train"), ("U2OS-04", 1, "val"), ("U2OS-04", 2, "val")),
    *(("RPE-08", 1, "test"), ("RPE-08", 2, "test"), ("HUVEC-03", 2, "train"), ("HUVEC-03", 1, "train")),
)
"""Experiment, site and column dataset."""
PLACES = (
    *(("train", "2012-12-31T23:59:59Z", "KEN"), ("train", "2013-01-01T00:00:00Z", "KEN")),
    *(("val", "2009-05-01T10:00:00Z", "KEN"), ("val", "2013-01-01T00:00:00Z", "KEN")),
    *(("val", "2015-12-31T23:59:59Z", "FRA"), ("val", "2016-01-01T00:00:00Z", "KEN")),
    *(("test", "2012-05-01T10:00:00Z", "KEN"), ("test", "2014-05-01T10:00:00Z", "KEN")),
    *(("test", "2016-01-01T00:00:00Z", "XXX"), ("test", "2017-05-01T10:00:00Z", "KEN")),
    *(("seq", "2009-05-01T10:00:00Z", "KEN"), ("seq", "2014-05-01T10:00:00Z", "KEN")),
    *(("seq", "2017-05-01T10:00:00Z", "KEN"), ("val", "2016-01-01T00:30:00+01:00", "ATA")),
)
"""Column split, time and country: a year after 2012 counts where the split is that of the years, seq nowhere."""

DOMAINS = {
    "camelyon17": {
        **{"train": [0, 1, 6], "id_val": [7, 8], "val": [2, 3], "test": [4, 5]},
        **{"1": [2, 3], "2": [4, 5]},
    },
    "rxrx1": {
        **{"train": [0, 7], "id_test": [1, 6], "val": [2, 3], "test": [4, 5]},
        **{"U2OS-04": [2, 3], "RPE-08": [4, 5]},
    },
    "fmow": {
        **{"train": [0], "id_val": [2], "id_test": [6], "val": [3, 4, 13], "test": [8, 9]},
        **{"Africa": [3, 9], "Europe": [4], "Other": [8, 13]},
    },
}
"""Numbers of the rows by every name of a domain: those of the package."""


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


def write_camelyon17(root, centers):
    """Patches of these hospitals and splits; numbers of patients keep their zeros."""
    rows = [
        {"": i, "patient": "004", "node": 4, "x_coord": 96 * i, "y_coord": 32, "tumor": i % 2, "slide": 0}
        | {"center": center, "split": split}
        for i, (center, split) in enumerate(centers)
    ]
    slide = "patient_004_node_4"
    names = [f"patches/{slide}/patch_{slide}_x_{row['x_coord']}_y_32.png" for row in rows]
    write(root / "camelyon17_v1.0", "metadata.csv", rows, names)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Some images of each benchmark."""
    root = tmp_path_factory.mktemp("wilds")
    write_camelyon17(root, CENTERS)
    rows = [
        {"site_id": i, "cell_type": name[:4], "dataset": split, "experiment": name, "plate": 2}
        | {"well": f"B0{i}", "site": site, "sirna": f"s{i}", "sirna_id": 10 * (i % 4)}
        for i, (name, site, split) in enumerate(PLATES)
    ]
    names = [f"images/{row['experiment']}/Plate2/{row['well']}_s{row['site']}.png" for row in rows]
    write(root / "rxrx1_v1.0", "metadata.csv", rows, names)
    rows = [
        {"split": split, "category": ("zoo", "airport")[i % 2], "country_code": code, "timestamp": time}
        for i, (split, time, code) in enumerate(PLACES)
    ]
    write(root / "fmow_v1.1", "rgb_metadata.csv", rows, [f"images/rgb_img_{i}.png" for i in range(len(rows))])
    (root / "fmow_v1.1" / "country_code_mapping.csv").write_text(
        "name,alpha-3,region\nAntarctica,ATA,\nFrance,FRA,Europe\nKenya,KEN,Africa\n"
    )
    return root


@pytest.mark.parametrize(
    ("dataset", "classes", "label_of"),
    [
        ("camelyon17", ("0", "1"), lambda number: number % 2),
        ("rxrx1", ("0", "10", "20", "30"), lambda number: number % 4),
        ("fmow", ("airport", "zoo"), lambda number: 1 - number % 2),
    ],
)
def test_the_images_of_every_domain(root, dataset, classes, label_of):
    for domain, numbers in DOMAINS[dataset].items():
        found = wilds_rows(root, dataset, domain)
        red = np.rint((found.rows[np.arange(len(found.rows))][:, 0, 0, 0] + 1) * 127.5)
        assert red.tolist() == numbers, domain
        assert found.labels is not None
        assert (found.labels.tolist(), found.classes) == ([label_of(number) for number in numbers], classes)
        assert found.event_shape == (8, 8, 3)
    with pytest.raises(ValueError, match="--domain is 'nowhere'") as refusal:
        wilds_rows(root, dataset, "nowhere")
    assert set(str(refusal.value).partition(" has: ")[2].split(", ")) == DOMAINS[dataset].keys()


def test_a_subset_is_drawn_from_all_of_the_domain(tmp_path):
    """Sixty images, of which twenty are drawn without repetition: the mean of their numbers is normal, nearly."""
    num, num_drawn = 60, 20
    write_camelyon17(tmp_path, [(0, 0)] * num)

    def drawn(num_images):
        found = wilds_rows(tmp_path, "camelyon17", "train", num_images=num_images)
        numbers = [int(name.partition("_x_")[2].partition("_y_")[0]) // 96 for name in found.rows.names]
        assert found.labels is not None
        assert found.labels.tolist() == [number % 2 for number in numbers]
        return numbers

    def score(numbers):
        variance = (num + 1) * (num - num_drawn) / (12 * num_drawn)
        return abs(np.mean(numbers) - (num - 1) / 2) / variance**0.5

    numbers = drawn(num_drawn)
    assert len(numbers) == num_drawn
    assert numbers == sorted(set(numbers)) == drawn(num_drawn)
    assert score(numbers) < 3 < score(np.arange(num_drawn))
    assert set(numbers) < set(drawn(num_drawn + 1))
    assert drawn(num) == drawn(None) == [*range(num)]


@pytest.fixture
def copy(root, tmp_path):
    """Copies a benchmark with ``new`` in the place of the first ``old`` of its table, whose path it returns."""

    def copied(dataset, old, new):
        [folder] = root.glob(f"{dataset}_*")
        shutil.copytree(folder, tmp_path / folder.name)
        [table] = (tmp_path / folder.name).glob("*metadata.csv")
        text = table.read_text()
        assert old in text
        table.write_text(text.replace(old, new, 1))
        return table

    return copied


@pytest.mark.parametrize(
    ("dataset", "old", "new", "message"),
    [
        ("camelyon17", "split\n", "part\n", r"metadata\.csv has no column split, but: , patient, node"),
        ("camelyon17", ",0,0,0\n1,", ",0\n1,", r"line 2: 7 fields, expected 9, .*; center is the first"),
        ("camelyon17", ",0,0,0\n1,", ",0,0,0,0\n1,", "line 2: 10 fields, expected 9, one for each column"),
        ("camelyon17", "1,004", "1,", "line 3: patient is '', expected some text"),
        (
            "camelyon17",
            "96,32,1,0,3,0",
            "96,32,1,0,5,0",
            "line 3: center is '5', expected an integer from 0 to 4",
        ),
        (
            "camelyon17",
            "96,32,1,0,3,0",
            "96,32,1,0,3,2",
            "line 3: split is '2', expected an integer from 0 to 1",
        ),
        (
            "camelyon17",
            "96,32,1,",
            "96.5,32,1,",
            r"line 3: x_coord is '96\.5', expected an integer from 0 on",
        ),
        ("rxrx1", "dataset", "part", "no column dataset, but: site_id"),
        ("rxrx1", "B00,1,", "B00,3,", "line 2: site is '3', expected an integer from 1 to 2"),
        ("rxrx1", "U2OS,val", "U2OS,valid", "line 4: dataset is 'valid', expected one of: train, val, test"),
        ("fmow", "timestamp", "time", "no column timestamp"),
        (
            "fmow",
            "12-31T23:59:59Z",
            "13-31T23:59:59Z",
            r"line 2: timestamp is '2012-13-31.*expected a time with",
        ),
        ("fmow", "12-31T23:59:59Z", "12-31T23:59:59", "line 2: timestamp is '2012-12-31T23:59:59', expected"),
        ("fmow", "seq", "test_gt", "line 12: split is 'test_gt', expected one of: train, val, test, seq"),
    ],
)
def test_a_table_that_cannot_be_is_refused_where_it_is_wrong(copy, dataset, old, new, message):
    table = copy(dataset, old, new)
    with pytest.raises(ValueError, match=message) as refusal:
        wilds_rows(table.parents[1], dataset, "test")
    assert str(refusal.value).startswith(str(table))


def test_a_file_that_is_no_table_is_refused(copy):
    table = copy("fmow", "split", "split")
    table.write_bytes(table.read_bytes() + b"\xff\xfe")
    with pytest.raises(ValueError, match=r"rgb_metadata\.csv, after line \d+: no text separated by commas"):
        wilds_rows(table.parents[1], "fmow", "test")
    table.write_text("split,category,country_code,timestamp\n\n")
    with pytest.raises(ValueError, match=r"rgb_metadata\.csv has no rows: download it"):
        wilds_rows(table.parents[1], "fmow", "test")
    table.with_name("country_code_mapping.csv").unlink()
    with pytest.raises(ValueError, match=r"country_code_mapping\.csv is missing: download it by the package"):
        wilds_rows(table.parents[1], "fmow", "test")


def test_images_that_are_missing_are_named_before_any_is_read(copy):
    """Of the domain alone that is asked for, and broken images after the missing ones."""
    table = copy("rxrx1", "site", "site")
    images, root = table.parent / "images", table.parents[1]
    (images / "HEPG2-01" / "Plate2" / "B00_s1.png").write_bytes(b"broken")
    (images / "HUVEC-03" / "Plate2" / "B07_s1.png").unlink()
    with pytest.raises(
        ValueError, match=r"^1 of 2 images of train are missing.*HUVEC-03/Plate2/B07_s1\.png: "
    ):
        wilds_rows(root, "rxrx1", "train")
    shutil.rmtree(images / "RPE-08")
    with pytest.raises(ValueError, match=r"^2 of 2 images of test are missing.*/B04_s1\.png"):
        wilds_rows(root, "rxrx1", "test")
    assert len(wilds_rows(root, "rxrx1", "val").rows) == 2
    Image.new("RGB", (8, 8)).save(images / "HUVEC-03" / "Plate2" / "B07_s1.png")
    with pytest.raises(
        ValueError, match=r"1 of 2 images .* cannot be read: images/HEPG2-01/Plate2/B00_s1\.png"
    ):
        wilds_rows(root, "rxrx1", "train")


def test_a_run_pretrains_on_the_training_domains_and_goes_on_elsewhere(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["wilds", "--dataset", "fmow", "--root", str(root)]
    for flags, domain in (
        (["--pretrain"], "train"),
        (["--base", "there"], "test"),
        (["--base", "there", "--domain", "Africa"], "Africa"),
    ):
        config = train.parse([*common, *flags])
        config.check()
        expected = wilds_rows(root, "fmow", domain)
        # The second time by what was kept of the first.
        for _ in range(2):
            assert config.rows(()).opened().fingerprint == expected.fingerprint
        assert config.facts() == {"shift": f"fmow, domain {domain}"}
    kept = [path.name.rpartition("-")[0] for path in (tmp_path / "runs" / "wilds" / "index").iterdir()]
    assert sorted(kept) == ["fmow-Africa-all", "fmow-test-all", "fmow-train-all"]
    assert call(monkeypatch, train, *common, "--pretrain", "--domain", "val") == 2
    assert "--domain is val; allowed is train, with --pretrain" in capsys.readouterr().err


def test_classes_of_a_benchmark_have_its_numbers_for_a_base_that_knows_no_names(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Wilds(root=str(root), dataset="fmow", domain="val", base="base").rows(())
    assert found.numbered_as((), 1000).labels.tolist() == [0, 1, 0]
    assert found.numbered_as(("zoo", "airport"), 2).labels.tolist() == [1, 0, 1]


def test_the_program_says_how_to_get_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "wilds", "--pretrain") == 2
    assert "get_dataset('camelyon17'" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/wilds/0*"))

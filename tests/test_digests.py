"""What tells the data of a run from others."""

import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

import gft_jax as gft
from experiments.data import digests
from experiments.data.digests import check_same, of_folder, of_latents
from experiments.data.image_rows import LabelledRows, latent_rows


@pytest.fixture
def folder(tmp_path):
    """Images of one size in bytes, in a format without compression."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("L", (4, 4), number).save(folder / f"{number}.pgm")
    return folder


def found_in(folder):
    return of_folder(folder, gft.data.images(folder).names)


def repaint(path, grey):
    size = path.stat().st_size
    Image.new("L", (4, 4), grey).save(path)
    assert path.stat().st_size == size


def test_a_copy_is_the_same_and_another_image_under_the_same_name_is_not(folder, tmp_path):
    found = found_in(folder)
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    (copy / "3.pgm").touch()
    assert found_in(copy) == found
    repaint(copy / "3.pgm", 200)
    other = found_in(copy)
    assert {name for name in found if found[name] != other[name]} == {"contents"}
    (copy / "3.pgm").rename(copy / "9.pgm")
    assert found_in(copy)["names"] != found["names"]


def test_of_many_images_some_are_read_and_the_sizes_of_all_are_looked_at(folder, monkeypatch):
    monkeypatch.setattr(digests, "NUM_READ", 2)
    found, noticed = found_in(folder), []
    for number in range(6):
        repaint(folder / f"{number}.pgm", 200)
        noticed.append(found_in(folder) != found)
        repaint(folder / f"{number}.pgm", number)
    assert sum(noticed) == 2
    unread = folder / f"{noticed.index(False)}.pgm"
    with unread.open("ab") as file:
        file.write(b"#")
    assert found_in(folder)["file sizes"] != found["file sizes"]


def test_other_latents_and_other_labels_are_told(tmp_path):
    rng = np.random.default_rng(0)
    latents, labels = rng.normal(size=(5, 2, 2, 3)).astype(np.float32), np.array([0, 1, 1, 0, 1])
    other = latents.copy()
    other[-1, -1, -1, -1] += 1e-3
    written = {"a": (latents, labels), "copy": (latents, labels), "other": (other, labels)}
    written |= {"relabelled": (latents, 1 - labels), "turned": (latents, labels)}
    found = {}
    for name, (rows, numbers) in written.items():
        np.savez(tmp_path / f"{name}.npz", latents=rows, labels=numbers)
        layout = "nchw" if name == "turned" else "nhwc"
        found[name] = latent_rows(tmp_path / f"{name}.npz", layout, ("x", "y")).fingerprint
    differing = {
        name: {key for key in found["a"] if found["a"][key] != print_[key]} for name, print_ in found.items()
    }
    assert differing == {
        "a": set(),
        "copy": set(),
        "other": {"contents"},
        "relabelled": {"labels"},
        "turned": {"shape"},
    }
    assert of_latents(tmp_path / "a.npz")["contents"] == found["a"]["contents"]


def test_labels_are_told_as_they_are_numbered_in_the_end(folder):
    rows = gft.data.images(folder)
    labels = np.array([0, 1, 1, 0, 1, 0], np.int32)
    found = LabelledRows(rows, labels, ("x", "y"), partial(of_folder, folder, rows.names))
    differing = found._replace(labels=1 - labels).fingerprint
    assert {name for name in differing if differing[name] != found.fingerprint[name]} == {"labels"}
    assert found._replace(labels=None).fingerprint["labels"] == "none"


def test_other_data_are_refused_with_what_differs(tmp_path):
    begun = {"shape": "(6, 4, 4, 1)", "names": "a", "contents": "b"}
    check_same(tmp_path, begun, dict(begun))
    with pytest.raises(ValueError, match="begun on other images") as raised:
        check_same(tmp_path, begun, begun | {"contents": "c"})
    assert "contents: there b, here c" in str(raised.value)
    assert "names" not in str(raised.value)
    with pytest.raises(ValueError, match="begun by a version that did not write down what its data are"):
        check_same(tmp_path, "an older fingerprint", begun)

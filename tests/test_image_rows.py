"""Images and latents with classes: how they are numbered and divided, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data.digit_images import write_digits
from experiments.data.image_rows import folder_rows, in_turn, latent_rows, split


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "digits"
    write_digits(folder, side=4, num_per_class=10)
    return folder


def test_digits_are_written_once_and_never_into_a_folder_that_holds_something(digits):
    assert sorted(path.name for path in (digits / "new").iterdir()) == ["5", "6", "7", "8", "9"]
    assert len(list(digits.rglob("*.png"))) == 100
    with pytest.raises(ValueError, match="not empty"):
        write_digits(digits)


def test_held_out_images_are_no_others_and_go_through_the_classes_in_turn(digits):
    found = folder_rows(digits / "old", None, None, ())
    data = split(found, 0.4, 10)
    assert (data.target.shape, data.held_out.shape) == ((30, 4, 4, 1), (10, 4, 4, 1))
    as_bytes = [
        {row.tobytes() for row in rows} for rows in (data.target, data.held_out, found.rows[np.arange(50)])
    ]
    assert not as_bytes[0] & as_bytes[1]
    assert as_bytes[0] | as_bytes[1] < as_bytes[2]
    assert {row.tobytes() for row in data.fresh} <= as_bytes[0]
    labels = data.labels
    assert labels is not None
    assert labels.held_out.tolist() == [0, 1, 2, 3, 4] * 2
    by_content = {
        row.tobytes(): label for row, label in zip(found.rows[np.arange(50)], found.labels, strict=True)
    }
    for rows, of_rows in ((data.target, labels.target), (data.held_out, labels.held_out)):
        assert [by_content[row.tobytes()] for row in rows] == of_rows.tolist()
    again = split(found, 0.4, 10)
    np.testing.assert_array_equal(again.target, data.target)
    # Where more are held out than left, no more are used than have others to be compared with.
    most = split(found, 0.7, 40)
    assert [len(rows) for rows in (most.target, most.held_out, most.fresh)] == [15, 15, 15]


def test_the_order_in_turn_takes_the_next_of_each_class():
    assert in_turn(np.array([2, 2, 0, 2, 0, 1])).tolist() == [2, 5, 0, 4, 1, 3]


def test_classes_take_the_numbers_that_a_base_gave_their_names(digits):
    new = folder_rows(digits / "new", None, None, ())
    assert (new.classes, new.labels.max()) == (("5", "6", "7", "8", "9"), 4)
    named = new.numbered_as(tuple("9876543210"))
    assert named.labels.tolist() == [4 - label for label in new.labels]
    assert new.numbered_as(("5", "6")) is new


def test_latents_may_have_their_channels_first(tmp_path):
    latents = np.random.default_rng(0).normal(size=(9, 4, 5, 3)).astype(np.float32)
    labels = np.arange(9) % 3
    np.savez(tmp_path / "last.npz", latents=latents, labels=labels)
    np.savez(tmp_path / "first.npz", latents=np.moveaxis(latents, -1, 1), labels=labels)
    last, first = (
        latent_rows(tmp_path / name, layout, ())
        for name, layout in (("last.npz", "nhwc"), ("first.npz", "nchw"))
    )
    assert last.event_shape == first.event_shape == (4, 5, 3)
    index = np.array([8, 0, 8])
    np.testing.assert_array_equal(first.rows[index], latents[index])
    np.testing.assert_array_equal(last.rows[index], latents[index])
    assert first.classes == ("0", "1", "2")
    with pytest.raises(ValueError, match="go up to 2, and --classes names 2"):
        latent_rows(tmp_path / "last.npz", "nhwc", ("a", "b"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 2, 2, 1), np.float32)}, "no array 'latents'"),
        ({"latents": np.zeros((3, 4), np.float32)}, "allowed are floating-point"),
        ({"latents": np.zeros((3, 2, 2, 1), np.int32)}, "allowed are floating-point"),
        ({"latents": np.zeros((3, 2, 2, 1), np.float32), "labels": np.zeros(2, int)}, "one for each row"),
        ({"latents": np.zeros((3, 2, 2, 1), np.float32), "labels": np.array([0, -1, 1])}, "from 0 on"),
        ({"latents": np.zeros((3, 2, 2, 1), np.float32), "labels": np.zeros(3)}, "integers"),
    ],
)
def test_refused_latents(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        latent_rows(tmp_path / "x.npz", "nhwc", ())


def test_refused_folders_and_splits(digits, tmp_path):
    with pytest.raises(ValueError, match=r"no folder and no \.npz file"):
        folder_rows(Path("nowhere"), None, None, ())
    for number, (mode, side) in enumerate((("L", 4), ("L", 6), ("RGB", 4))):
        Image.new(mode, (side, side)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="2 sizes"):
        folder_rows(tmp_path, None, "L", ())
    with pytest.raises(ValueError, match="2 modes"):
        folder_rows(tmp_path, 4, None, ())
    with pytest.raises(ValueError, match="at least two must be held out"):
        split(folder_rows(tmp_path, 4, "L", ()), 0.1, 10)

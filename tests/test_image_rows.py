"""Images and latents with classes: how they are numbered, divided and read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data.class_numbers import in_network
from experiments.data.digit_images import write_digits
from experiments.data.division import divide, in_turn
from experiments.data.image_rows import MOST_CLASSES, folder_rows, latent_rows, read
from gft_jax.data import inspection


def split(data, share, most):
    return read(data, divide(data.labels, len(data.rows), share, most))


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


def test_classes_that_a_base_knows_by_name_have_its_numbers(digits):
    new = folder_rows(digits / "new", None, None, ())
    assert (new.classes, new.labels.max()) == (("5", "6", "7", "8", "9"), 4)
    named = new.numbered_as(tuple("9876543210"), 10)
    assert named.labels.tolist() == [4 - label for label in new.labels]
    assert named.classes == tuple("9876543210")


def test_classes_that_a_base_does_not_know_take_its_first_numbers():
    numbers, names = in_network(["cat", "dog"], ["a", "b", "c"], 3)
    assert (numbers.tolist(), names) == ([0, 1], ("cat", "dog", "c"))
    with pytest.raises(
        ValueError, match=r"have 4 classes \(p, q, r, s\), and the network of the base has 3:"
    ):
        in_network(list("pqrs"), ["a", "b", "c"], 3)


def test_classes_of_which_a_base_knows_some_are_not_guessed():
    message = (
        r"of the 4 classes .* known are cat, emu; unknown are ant, bee\. Give the number of each: --classes names all "
        r"classes in the order of their numbers, those of the base \(cat, dog, emu\) with .* 5 at most"
    )
    with pytest.raises(ValueError, match=message):
        in_network(["ant", "bee", "cat", "emu"], ["cat", "dog", "emu"], 5)


def test_a_base_without_names_takes_numbers_alone():
    numbers, names = in_network(["002", "10", "9"], (), 11)
    assert numbers.tolist() == [2, 10, 9]
    assert (names[2], names[3], names[10]) == ("002", "3", "10")
    # The next run finds the same numbers by these names.
    assert in_network(["002", "10", "9"], names, 11).numbers.tolist() == [2, 10, 9]
    for wrong, told in (
        (["1", "fox"], "fox among the classes"),
        (["1", "11"], "11 among the classes"),
        (["1", "01"], "a number twice in 1, 01"),
    ):
        message = (
            f"knows its 11 classes by number alone, and there is {told} .*from 0 to 10, or give --classes"
        )
        with pytest.raises(ValueError, match=message):
            in_network(wrong, (), 11)


def test_numbers_of_the_data_themselves_stand(digits, tmp_path):
    """Labels of a file are numbers of the base, whose names they get; a benchmark has numbers for a base without."""
    folders = folder_rows(digits / "new", None, None, ())
    assert folders.numbered_as((), 10).labels.tolist() == [5 + label for label in folders.labels]
    np.savez(tmp_path / "x.npz", latents=np.zeros((3, 2, 2, 1), np.float32), labels=np.array([2, 0, 2]))
    found = latent_rows(tmp_path / "x.npz", "nhwc", ())
    named = found.numbered_as(("a", "b"), 3)
    assert (named.labels.tolist(), named.name_of(0), named.name_of(2)) == ([2, 0, 2], "a", "2")
    assert found.numbered_as((), 1000) is found
    benchmark = found._replace(classes=("x", "y", "z"))
    assert benchmark.numbered_as((), 1000) is benchmark
    assert benchmark.numbered_as(("z", "y", "x"), 3).labels.tolist() == [0, 2, 0]


def test_one_image_is_read_until_the_rest_is_asked_for_and_none_twice(digits, tmp_path, monkeypatch):
    looked = []
    reader = inspection._read
    monkeypatch.setattr(inspection, "_read", lambda path: looked.append(path.name) or reader(path))
    index = tmp_path / "made" / "index.json"
    first = folder_rows(digits / "old", None, None, (), index)
    assert (len(looked), len(first.rows), first.event_shape) == (1, 50, (4, 4, 1))
    assert not index.parent.exists()
    whole = first.opened()
    assert len(looked) == 51
    np.testing.assert_array_equal(whole.rows[np.array([7])], first.rows[np.array([7])])
    folder_rows(digits / "old", None, None, (), index).opened()
    assert len(looked) == 52
    # Where no index can be written, all are read again.
    folder_rows(digits / "old", None, None, (), index / "below a file" / "index.json").opened()
    assert len(looked) == 103


def test_all_images_that_cannot_be_read_are_named_although_the_first_is_one(digits, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_text("no image")
    with pytest.raises(ValueError, match=r"4 of 4 images .* cannot be read: 0\.png .*3\.png"):
        folder_rows(tmp_path, None, None, ())


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
    assert (first.classes, first.num_classes, first.name_of(2)) == ((), 3, "2")
    five = latent_rows(tmp_path / "last.npz", "nhwc", tuple("abcde"))
    assert (five.num_classes, five.name_of(2)) == (5, "c")
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
        (
            {"latents": np.zeros((3, 2, 2, 1), np.float32), "labels": np.zeros(3)},
            "dtype float64; allowed are int",
        ),
        (
            {"latents": np.zeros((3, 2, 2, 1), np.float32), "labels": np.array([0, 10**9, 2**40])},
            f"go up to {2**40}; allowed are numbers of classes, below {MOST_CLASSES}",
        ),
    ],
)
def test_refused_latents(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        latent_rows(tmp_path / "x.npz", "nhwc", ())


def test_classes_are_not_named_where_there_are_no_labels(tmp_path):
    np.savez(tmp_path / "x.npz", latents=np.zeros((3, 2, 2, 1), np.float32))
    with pytest.raises(ValueError, match="has no array labels, and --classes names 2 classes: leave it out"):
        latent_rows(tmp_path / "x.npz", "nhwc", ("a", "b"))


def test_refused_folders_and_splits(digits, tmp_path):
    with pytest.raises(ValueError, match=r"no folder and no \.npz file"):
        folder_rows(Path("nowhere"), None, None, ())
    for number, (mode, side) in enumerate((("L", 4), ("L", 6), ("RGB", 4))):
        Image.new(mode, (side, side)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="2 sizes"):
        folder_rows(tmp_path, None, "L", ()).opened()
    with pytest.raises(ValueError, match="2 modes"):
        folder_rows(tmp_path, 4, None, ()).opened()
    with pytest.raises(ValueError, match="at least two must be held out"):
        split(folder_rows(tmp_path, 4, "L", ()), 0.1, 10)

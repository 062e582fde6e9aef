"""Folders of images: values, labels and order, and everything that a folder can have wrong."""

import os

import numpy as np
import pytest
from PIL import Image

import gft_jax as gft
from gft_jax.data import inspection


def pixels_of(seed, shape=(4, 6, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)


def read_all(folder, **options):
    return gft.data.to_images(gft.data.in_memory(gft.data.images(folder, **options)))


@pytest.fixture
def two_classes(tmp_path):
    """cat: a, b; dog: c, and d below a folder."""
    names = ("cat/a.png", "cat/b.PNG", "dog/c.png", "dog/deep/d.png")
    for seed, name in enumerate(names):
        write(tmp_path / name, pixels_of(seed))
    return tmp_path


def test_class_folders_are_labels_and_pixels_come_through_exactly(two_classes):
    (two_classes / "cat" / "notes.txt").write_text("no image")
    (two_classes / "cat" / "._a.png").write_text("hidden")
    (two_classes / ".cache").mkdir()
    folder = gft.data.images(two_classes)
    assert folder.names == ("cat/a.png", "cat/b.PNG", "dog/c.png", "dog/deep/d.png")
    assert folder.classes == ("cat", "dog")
    np.testing.assert_array_equal(folder.labels, [0, 0, 1, 1])
    assert (folder.shape, folder.dtype, folder.mode) == ((4, 4, 6, 3), np.float32, "RGB")
    expected = np.stack([pixels_of(seed) for seed in range(4)])
    np.testing.assert_array_equal(read_all(two_classes), expected)
    rows = folder[np.array([3, 1, 3])]  # repeated, as where there are fewer images than a batch holds
    np.testing.assert_allclose(rows, expected[[3, 1, 3]] / 127.5 - 1, atol=1e-7)
    assert folder[np.array([], int)].shape == (0, 4, 6, 3)
    for wrong in (np.array([4]), np.array([-1]), 0, np.array([True] * 4)):
        with pytest.raises(IndexError, match="rows are"):
            folder[wrong]


def test_classes_can_be_named_so_that_folders_are_labelled_alike(two_classes):
    folder = gft.data.images(two_classes, classes=("dog", "bird", "cat"))
    assert folder.names[0] == "dog/c.png"
    np.testing.assert_array_equal(folder.labels, [0, 0, 2, 2])
    for classes, message in (
        (("dog",), "does not name cat; .* has images in: cat, dog"),
        (("dog", "cat", "dog"), "names dog twice"),
    ):
        with pytest.raises(ValueError, match=message):
            gft.data.images(two_classes, classes=classes)
    (two_classes / "ant").mkdir()
    with pytest.raises(
        ValueError, match=r"class folders of .* without images: ant; remove them, or name all"
    ):
        gft.data.images(two_classes)
    assert gft.data.images(two_classes, classes=("ant", "cat", "dog")).labels.tolist() == [1, 1, 2, 2]


def test_a_folder_without_classes_has_no_labels_and_links_are_followed(tmp_path):
    write(tmp_path / "elsewhere" / "b.png", pixels_of(1))
    write(tmp_path / "flat" / "c.png", pixels_of(0))
    (tmp_path / "flat" / "a.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    folder = gft.data.images(tmp_path / "flat")
    assert folder.labels is None
    assert (folder.names, folder.classes) == (("a.png", "c.png"), ())
    np.testing.assert_array_equal(read_all(tmp_path / "flat"), [pixels_of(1), pixels_of(0)])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")  # a circle
    assert gft.data.images(tmp_path / "linked").names == ("cat/b.png",)
    with pytest.raises(ValueError, match="no class folders"):
        gft.data.images(tmp_path / "flat", classes=("a",))


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images: found no files at all; images end in .bmp"):
        gft.data.images(tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("a/x.npy", "y.npy", ".z.png", "README"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"found 2 \.npy, 1 hidden, 1 without a suffix"):
        gft.data.images(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        gft.data.images(tmp_path / "missing")
    write(tmp_path / "a.png", pixels_of(0))
    write(tmp_path / "a" / "b.png", pixels_of(0))
    with pytest.raises(
        ValueError, match=r"holds 1 images itself \(the first: a.png\) and others in folders \(a\)"
    ):
        gft.data.images(tmp_path)


def test_unreadable_images_are_named_counted_and_left_out_only_if_asked(two_classes):
    whole = (two_classes / "cat" / "a.png").read_bytes()
    (two_classes / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (two_classes / "cat" / "text.jpg").write_text("no image")
    Image.fromarray(pixels_of(0, (64, 64, 3))).save(two_classes / "dog" / "cut.jpg")
    photo = (two_classes / "dog" / "cut.jpg").read_bytes()
    (two_classes / "dog" / "cut.jpg").write_bytes(photo[: len(photo) * 3 // 4])
    (two_classes / "dog" / "gone.png").symlink_to(two_classes / "nowhere.png")
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(two_classes / "dog" / "deep.png")
    with pytest.raises(
        ValueError, match=r"5 of 9 images of .* cannot be read: cat/cut.png .*truncated.*skip"
    ):
        gft.data.images(two_classes)
    with pytest.warns(UserWarning, match=r"5 of 9 images .*They are left out"):
        folder = gft.data.images(two_classes, on_unreadable="skip")
    assert list(folder.unreadable) == [
        "cat/cut.png",
        "cat/text.jpg",
        "dog/cut.jpg",
        "dog/deep.png",
        "dog/gone.png",
    ]
    assert "I;16" in folder.unreadable["dog/deep.png"]
    assert len(folder) == 4
    np.testing.assert_array_equal(folder.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(gft.data.to_images(folder[np.array([3])])[0], pixels_of(3))
    for name in ("c.png", "deep/d.png"):
        (two_classes / "dog" / name).write_text("")
    with (
        pytest.warns(UserWarning, match="7 of 9"),
        pytest.raises(ValueError, match=r"no image of these classes of .* can be read: dog"),
    ):
        gft.data.images(two_classes, on_unreadable="skip")
    for name in ("a.png", "b.PNG"):
        (two_classes / "cat" / name).write_text("")
    with pytest.raises(ValueError, match="9 of 9 images"):  # nothing is left
        gft.data.images(two_classes, on_unreadable="skip")


def test_an_image_that_goes_bad_during_a_run_is_named(two_classes):
    folder = gft.data.images(two_classes)
    (two_classes / "dog" / "c.png").write_text("overwritten")
    with pytest.raises(ValueError, match=r"dog/c.png could be read when the folder was opened"):
        folder[np.arange(4)]


def test_sizes_and_modes_must_agree_or_be_asked_for(two_classes):
    grey = pixels_of(9, (4, 6, 1))
    write(two_classes / "dog" / "e.png", grey)
    with pytest.raises(
        ValueError, match=r"2 modes: RGB: 4 images \(cat/a.png, .*\); L: 1 images \(dog/e.png\)"
    ):
        gft.data.images(two_classes)
    np.testing.assert_array_equal(read_all(two_classes, mode="RGB")[-1], np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(read_all(two_classes, mode="L")[-1], grey)
    write(two_classes / "dog" / "f.png", pixels_of(10, (6, 4, 3)))
    with pytest.raises(
        ValueError, match=r"2 sizes \(height x width\): 4 x 6: 5 images .*6 x 4: 1 .*f.png\)\. give size"
    ):
        gft.data.images(two_classes, mode="RGB")
    assert gft.data.images(two_classes, mode="RGB", size=(5, 3)).shape == (6, 5, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "in pixels >= 1, got 0"),
        ({"mode": "HSV"}, "mode is one of 'L', 'RGB', 'RGBA', None, got 'HSV'"),
        ({"on_unreadable": "ignore"}, "on_unreadable is one of 'raise', 'skip', got 'ignore'"),
        ({"threads": 0}, "threads must be >= 1"),
    ],
)
def test_arguments_out_of_range(options, message, tmp_path, without_hook):
    with pytest.raises(ValueError, match=message):
        gft.data.images(tmp_path, **options)


def test_the_centre_is_cut_out_and_resized_with_antialiasing(tmp_path):
    """Stripes narrower than the new pixels become their mean; without antialiasing they would be 0 or 255."""
    wide = np.zeros((8, 24, 1), np.uint8)
    wide[:, 8:16] = 255 * (np.arange(8) % 2)[None, :, None]
    write(tmp_path / "a.png", wide)
    small = read_all(tmp_path, size=2)
    assert small.shape == (1, 2, 2, 1)
    assert np.abs(small.astype(int) - 127).max() < 30
    exact = read_all(tmp_path, size=8)
    np.testing.assert_array_equal(exact[0], wide[:, 8:16])


def test_images_stand_upright(tmp_path):
    """Orientation 6: the image must be turned by a quarter clockwise to be seen as it was taken."""
    pixels = pixels_of(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "a.png", pixels, exif=exif)
    assert gft.data.images(tmp_path).shape == (1, 6, 4, 3)
    np.testing.assert_array_equal(read_all(tmp_path)[0], np.rot90(pixels, -1))


def test_transparency_is_kept_or_shown_on_white_and_palettes_are_colours(tmp_path):
    clear = pixels_of(0, (4, 6, 4))
    clear[..., 3] = 255 * (np.arange(6) % 2)
    write(tmp_path / "clear" / "a.png", clear)
    folder = gft.data.images(tmp_path / "clear")
    assert (folder.mode, folder.shape[-1]) == ("RGBA", 4)
    np.testing.assert_array_equal(read_all(tmp_path / "clear")[0], clear)
    shown = np.where(clear[..., 3:] == 0, 255, clear[..., :3])
    np.testing.assert_array_equal(read_all(tmp_path / "clear", mode="RGB")[0], shown)
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[:2] = [200, 10, 30]
    (tmp_path / "palette").mkdir()
    Image.fromarray(colours).quantize(4).save(tmp_path / "palette" / "a.png")
    assert gft.data.images(tmp_path / "palette").mode == "RGB"
    np.testing.assert_array_equal(read_all(tmp_path / "palette")[0], colours)


def test_an_index_file_spares_images_that_have_not_changed(two_classes, tmp_path, monkeypatch):
    index, read = two_classes / "index.json", []
    reader = inspection._read
    monkeypatch.setattr(inspection, "_read", lambda path: read.append(path.name) or reader(path))
    first = gft.data.images(two_classes, index_file=index)
    assert sorted(read) == ["a.png", "b.PNG", "c.png", "d.png"]
    read.clear()
    again = gft.data.images(two_classes, index_file=index)
    assert read == []
    assert (again.shape, again.names) == (first.shape, first.names)
    write(two_classes / "dog" / "c.png", pixels_of(7))
    os.utime(two_classes / "dog" / "c.png", ns=(1, 1))
    (two_classes / "cat" / "a.png").write_text("")
    for _ in range(2):  # what cannot be read is looked at again
        read.clear()
        with pytest.warns(UserWarning, match="1 of 4 images"):
            gft.data.images(two_classes, index_file=index, on_unreadable="skip")
        assert "a.png" in read
    assert read == ["a.png"]
    index.write_text("[]")
    with pytest.raises(ValueError, match="is not an index of images"):
        gft.data.images(two_classes, index_file=index)
    with pytest.raises(OSError, match="cannot be written"):
        gft.data.images(two_classes, index_file=two_classes / "missing" / "index.json")

"""Arrays in files, their memory, normalisation, and pixels: what is read is what was written."""

import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from gft_jax.data import array_files, rows


def rows_2d(num=20, seed=0):
    return np.random.default_rng(seed).normal(size=(num, 3)).astype(np.float32)


def test_npy_and_uncompressed_npz_are_mapped_and_compressed_ones_read(tmp_path):
    x, labels = rows_2d(), np.arange(20)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    np.savez(tmp_path / "plain.npz", x=x, labels=labels)
    np.savez_compressed(tmp_path / "packed.npz", x=x)
    for name, member, mapped in (
        ("x.npy", None, True),
        ("fortran.npy", None, True),
        ("plain.npz", "x", True),
        ("packed.npz", "x", False),
    ):
        array = gft.data.open_array(tmp_path / name, member)
        np.testing.assert_array_equal(array, x)
        assert isinstance(array, np.memmap) is mapped
        if mapped:
            assert not array.flags.writeable
    np.testing.assert_array_equal(gft.data.open_array(tmp_path / "plain.npz", "labels"), labels)


def test_a_large_compressed_member_is_said_to_be_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "packed.npz", x=rows_2d())
    monkeypatch.setattr(array_files, "LARGE", 100)
    with pytest.warns(UserWarning, match=r"member 'x' is compressed.*numpy.savez writes"):
        gft.data.open_array(tmp_path / "packed.npz", "x")


def test_files_that_are_none_are_refused(tmp_path):
    x = rows_2d()
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, y=x)
    np.save(tmp_path / "objects.npy", np.array([{}, None], object), allow_pickle=True)
    np.save(tmp_path / "foreign.npy", x.astype(">f4"))
    (tmp_path / "short.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
    (tmp_path / "short.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-40])
    (tmp_path / "header.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:20])
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    for name, member, message in (
        ("x.npz", None, "holds arrays by name: give one; there are: x, y"),
        ("x.npz", "z", "has no array 'z'; there are: x, y"),
        ("empty.npz", "x", "has no array 'x'; there are: none"),
        ("x.npy", "x", "holds a single array: it has no member 'x'"),
        ("objects.npy", None, "dtype |O: it must be of plain numbers"),
        ("foreign.npy", None, "dtype >f4: .*byte order"),
        ("short.npy", None, r"cut short: shape \(20, 3\) of float32 takes 240 bytes, 236 are there"),
        ("short.npz", "x", "neither a .npy nor a .npz file, or its end is missing"),
        ("header.npy", None, "no array of numbers that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            gft.data.open_array(tmp_path / name, member)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.npy"):
        gft.data.open_array(tmp_path / "missing.npy")


def test_a_mapped_file_is_checked_and_read_without_being_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2**22)
    num_bytes, path = 2**26, tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (2**12, 2**12)).flush()
    data = gft.data.open_array(path)
    standard = gft.data.Normalisation(np.zeros(1, np.float32), np.ones(1, np.float32))

    def peak(action):
        tracemalloc.start()
        action()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    def stream(dataset):
        return gft.pairing.batches(dataset, batch_size=2, seed=0).batch(0)

    stream(data)  # what JAX keeps of its first program is not counted
    assert peak(lambda: stream(data)) < num_bytes / 16
    # Some chunks: as they are read, and results of their arithmetic.
    assert peak(lambda: stream(gft.data.normalised(data, standard))) < num_bytes / 3
    assert peak(lambda: gft.data.in_memory(data)) > num_bytes  # power


def test_a_scan_in_chunks_finds_what_is_not_finite_and_where(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 3 * 12)
    x = rows_2d()
    x[4, 1], x[4, 2], x[17] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match=r"5 values .* in 2 of 20 rows \(the first: \[4, 17\]\)"):
        gft.pairing.batches(x, batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"cond holds 1 values .* in 1 of 20 rows \(the first: \[19\]\)"):
        gft.pairing.batches(rows_2d(), batch_size=2, seed=0, cond=np.append(np.zeros(19, np.float32), np.nan))


def test_statistics_by_chunks_are_those_of_the_whole(monkeypatch):
    x = (np.random.default_rng(0).normal(size=(50, 4, 5, 3)) * [1.0, 2.0, 0.1] + [0.0, 100.0, -3.0]).astype(
        np.float32
    )
    monkeypatch.setattr(rows, "CHUNK_BYTES", 7 * x[0].nbytes)
    for axis, axes in ((-1, (0, 1, 2)), (2, (0, 1, 2)), (0, (0, 2, 3)), (None, (0, 1, 2, 3))):
        mean, scale = gft.data.fit_normalisation(x, channel_axis=axis)
        whole = x.astype(np.float64)
        np.testing.assert_allclose(mean, whole.mean(axes, keepdims=True)[0], rtol=1e-6)
        np.testing.assert_allclose(scale, whole.std(axes, keepdims=True)[0], rtol=1e-6)


def test_normalised_rows_have_mean_0_and_variance_1_and_come_back(tmp_path):
    x = rows_2d(200) * np.float32([1, 5, 0.2]) + np.float32([3, -2, 0])
    normalisation = gft.data.fit_normalisation(x)
    ours = gft.data.normalised(x, normalisation)
    values = gft.data.in_memory(ours)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(ours[np.array([7, 3, 7])], values[[7, 3, 7]])
    np.testing.assert_allclose(gft.data.restored(values, normalisation), x, atol=1e-5)
    np.testing.assert_allclose(jax.jit(gft.data.restored)(jnp.asarray(values), normalisation), x, atol=1e-5)
    gft.checkpoints.save_params(tmp_path / "normalisation", normalisation)
    for saved, fitted in zip(
        gft.checkpoints.load_params(tmp_path / "normalisation", normalisation), normalisation, strict=True
    ):
        np.testing.assert_array_equal(saved, fitted)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((0, 3), np.float32), {}, r"num >= 1, got shape \(0, 3\)"),
        (np.zeros((4, 3), np.uint8), {}, "floating-point rows.*uint8"),
        (np.ones((4, 3), np.float32), {"channel_axis": 1}, r"channel_axis=1 is no axis .*\(3,\)"),
        (np.float32([[1, 0.1], [2, 0.1]]), {}, r"1 of 2 channels are the same .*first: \[1\]"),
        (np.float32([[1], [np.inf]]), {}, "not finite"),
    ],
)
def test_what_cannot_be_normalised(x, options, message):
    with pytest.raises(ValueError, match=message):
        gft.data.fit_normalisation(x, **options)


@pytest.mark.parametrize(
    ("mean", "scale", "message"),
    [
        (np.zeros(2), np.ones(3), r"mean of shape \(2,\) does not broadcast .*\(3,\)"),
        (np.zeros((1, 3)), np.ones(3), r"mean of shape \(1, 3\)"),
        (np.zeros(3), np.array([1.0, 0.0, 1.0]), "scale .* must be positive"),
        (np.array([np.nan]), np.ones(3), "mean .* must be finite"),
    ],
)
def test_normalisations_that_are_none(mean, scale, message):
    with pytest.raises(ValueError, match=message):
        gft.data.normalised(rows_2d(), gft.data.Normalisation(mean, scale))


def test_bytes_come_back_and_between_them_the_nearest_is_taken():
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    values = gft.data.in_memory(gft.data.from_images(pixels))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, pixels / 127.5 - 1, atol=1e-7)
    assert (values.min(), values.max()) == (-1, 1)
    np.testing.assert_array_equal(gft.data.to_images(jnp.asarray(values)), pixels)
    np.testing.assert_array_equal(
        gft.data.to_images(np.float32([-7, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 9])), [0, 0, 1, 255]
    )
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        gft.data.to_images(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"floating-point samples .*uint8"):
        gft.data.to_images(pixels)
    with pytest.raises(ValueError, match="bytes from 0 to 255, got dtype float32"):
        gft.data.from_images(values)
    with pytest.raises(ValueError, match=r"uint8; scale images to .*from_images"):
        gft.pairing.batches(pixels, batch_size=1, seed=0)

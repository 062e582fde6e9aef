"""Streams of rows that are read lazily: what is read when, exact resume, flips, and the same order through grain."""

import logging
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gft_jax as gft
from gft_jax.pairing import row_order


class Recorded:
    """Rows that remember who read which of them."""

    def __init__(self, values, finite=False):
        self.values, self.finite, self.reads = values, finite, []

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        assert isinstance(index, np.ndarray)
        self.reads.append((index.tolist(), threading.current_thread().name))
        return self.values[index]


def values_of(num=20, seed=0):
    return np.random.default_rng(seed).normal(size=(num, 2, 3, 1)).astype(np.float32)


def same(one, two):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = map(jax.random.key_data, (ours, theirs))
        np.testing.assert_array_equal(ours, theirs)


def test_lazy_rows_and_conditions_make_the_batches_of_the_array():
    x, labels = values_of(), np.arange(20)
    embedded = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    options = {"batch_size": 6, "seed": 1, "coupling": gft.couplings.exact(), "pair_size": 12}
    cond = {"label": labels, "text": embedded}
    lazy = gft.pairing.batches(Recorded(x), cond=cond | {"text": Recorded(embedded)}, **options)
    plain = gft.pairing.batches(x, cond=cond, **options)
    same(lazy.batch(3), plain.batch(3))
    same(lazy.many(1, 4), plain.many(1, 4))


def test_rows_are_read_once_in_a_scan_and_then_those_of_the_batch_alone(monkeypatch):
    monkeypatch.setattr(gft.data.rows, "CHUNK_BYTES", 7 * 24)
    rows, finite = Recorded(values_of()), Recorded(values_of(), finite=True)
    stream = gft.pairing.batches(rows, batch_size=6, seed=1)
    assert [index for index, _ in rows.reads] == [[*range(7)], [*range(7, 14)], [*range(14, 20)]]
    rows.reads.clear()
    stream.batch(5)
    assert [index for index, _ in rows.reads] == [row_order(20, 6, 1, 5).tolist()]
    gft.pairing.batches(finite, batch_size=6, seed=1)
    gft.pairing.batches(
        gft.data.normalised(finite, gft.data.Normalisation(np.zeros(1), np.ones(1))), batch_size=6, seed=1
    )
    assert finite.reads == []  # finite by construction, also normalised


def test_a_stream_that_begins_at_a_step_has_its_batches():
    x = values_of()
    options = {"batch_size": 8, "seed": 2, "augment": gft.data.horizontal_flip()}
    through = gft.pairing.batches(Recorded(x), **options)
    whole = [through.batch(step) for step in range(6)]
    same(gft.pairing.batches(Recorded(x), **options).batch(5), whole[5])
    with gft.pairing.ahead(gft.pairing.batches(Recorded(x), **options), depth=3) as batches:
        same(batches.batch(4), whole[4])


def test_ahead_reads_rows_in_its_thread_several_batches_before_they_are_asked_for():
    rows = Recorded(values_of(), finite=True)
    stream = gft.pairing.batches(rows, batch_size=4, seed=0)
    read = threading.Semaphore(0)

    def batch(step, inner=stream.batch):
        made = inner(step)
        assert all(isinstance(leaf, jax.Array) and leaf.committed is False for leaf in (made.x0, made.x1))
        read.release()
        return made

    with gft.pairing.ahead(stream._replace(batch=batch), depth=3, num_steps=10) as batches:
        batches.batch(2)
        assert all(read.acquire(timeout=60) for _ in range(4))  # 2 to 5, though 2 alone was asked for
    assert [index for index, _ in rows.reads] == [row_order(20, 4, 0, step).tolist() for step in (2, 3, 4, 5)]
    assert {name for _, name in rows.reads} == {"gft_jax.pairing.ahead_0"}


def test_flips_have_their_frequency_are_of_the_row_alone_and_move_nothing_else():
    num, probability = 4000, 0.3
    x = values_of()
    options = {"batch_size": num, "seed": 3, "cond": np.arange(20)}
    plain = gft.pairing.batches(x, **options).batch(2)
    stream = gft.pairing.batches(x, **options, augment=gft.data.horizontal_flip(probability))
    batch = stream.batch(2)
    mirrored = np.asarray(plain.x1)[:, :, ::-1]
    flipped = (np.asarray(batch.x1) == mirrored).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(batch.x1, np.where(flipped[:, None, None, None], mirrored, plain.x1))
    same(batch._replace(x1=None), plain._replace(x1=None))

    def z_score(rate):
        return abs(flipped.mean() - rate) / np.sqrt(rate * (1 - rate) / num)

    assert z_score(probability) < 4
    assert z_score(0.35) > 5  # power
    # Independent of the noise; of one step of that of another; the same in other splits of the rows.
    bound = 4 / np.sqrt(num)
    assert abs(np.corrcoef(flipped, np.asarray(batch.x0).reshape(num, -1)[:, 0])[0, 1]) < bound
    many = stream.many(1, 2)
    same(jax.tree.map(lambda leaf: leaf[1], many), batch)
    other = (np.asarray(many.x1[0]) == x[row_order(20, num, 3, 1)][:, :, ::-1]).all(axis=(1, 2, 3))
    assert abs(np.corrcoef(flipped, other)[0, 1]) < bound
    few = gft.pairing.batches(
        x, **(options | {"batch_size": 100}), augment=gft.data.horizontal_flip(probability)
    )
    of_few = np.asarray(few.batch(2).x1) == x[row_order(20, 100, 3, 2)][:, :, ::-1]
    np.testing.assert_array_equal(of_few.all(axis=(1, 2, 3)), flipped[:100])


def test_the_coupling_and_its_diagnosis_see_the_flipped_rows():
    x = values_of(8)
    coupling, flip = gft.couplings.exact(), gft.data.horizontal_flip(1.0)
    stream = gft.pairing.batches(x, batch_size=8, seed=0, coupling=coupling, augment=flip)
    by_hand = gft.pairing.batches(x[:, :, ::-1].copy(), batch_size=8, seed=0, coupling=coupling)
    unflipped = gft.pairing.batches(x, batch_size=8, seed=0, coupling=coupling)
    same(stream.batch(1), by_hand.batch(1))
    same(stream.diagnose(1), by_hand.diagnose(1))
    assert float(stream.pairing(1).cost) != float(unflipped.pairing(1).cost)


def test_a_rate_of_flips_is_no_new_program(caplog):
    x = values_of()
    gft.pairing.batches(x, batch_size=3, seed=0, augment=gft.data.horizontal_flip(0.25)).batch(0)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        gft.pairing.batches(x, batch_size=3, seed=9, augment=gft.data.horizontal_flip(0.75)).batch(0)
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda key, row: row[:1], r"shape \(1, 3, 1\) .*out of rows of shape \(2, 3, 1\)"),
        (lambda key, row: row.astype(jnp.float16), "dtype float16"),
    ],
)
def test_an_augmentation_must_keep_shape_and_dtype(augment, message):
    with pytest.raises(ValueError, match=message):
        gft.pairing.batches(values_of(), batch_size=2, seed=0, augment=augment)


def test_flips_are_of_images():
    with pytest.raises(ValueError, match=r"rows \[height, width, channels\], got shape \(2, 3\)"):
        gft.pairing.batches(values_of()[..., 0], batch_size=2, seed=0, augment=gft.data.horizontal_flip())
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        gft.data.horizontal_flip(1.5)


def test_a_folder_of_images_is_a_dataset_with_labels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / str(number % 2) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    folder = gft.data.images(tmp_path)
    stream = gft.pairing.batches(folder, batch_size=4, seed=0, cond=folder.labels, num_classes=2)
    in_memory = (pixels[[0, 2, 4, 1, 3, 5]] / 127.5 - 1).astype(np.float32)[..., None]
    plain = gft.pairing.batches(in_memory, batch_size=4, seed=0, cond=np.repeat(np.int32([0, 1]), 3))
    same(stream.batch(7), plain.batch(7))


def test_sources_and_semidiscrete_streams_take_rows_and_hold_them_whole():
    x = values_of()
    keys = jax.random.split(jax.random.key(0), 5)
    same(gft.pairing.rows_of(Recorded(x))(keys), gft.pairing.rows_of(x)(keys))
    fitted = gft.couplings.fit_semidiscrete(
        jax.random.key(0), x, gft.pairing.standard_normal(x.shape[1:]), num_steps=2, batch_size=8
    )
    options = {"batch_size": 4, "seed": 0, "cond": np.arange(20)}
    same(
        gft.pairing.chosen_batches(Recorded(x), fitted, **options).batch(1),
        gft.pairing.chosen_batches(x, fitted, **options).batch(1),
    )


def test_a_dataset_of_grain_has_the_rows_of_the_stream_in_its_order():
    pytest.importorskip("grain", reason='needs the extra "grain"')
    x, labels = values_of(), np.arange(20)
    stream = gft.pairing.batches(x, batch_size=6, seed=4, cond=labels)
    dataset = gft.pairing.grain_dataset(x, seed=4, num_epochs=3, cond=labels).batch(6)
    assert len(dataset) == 10
    for step in (9, 0, 4):
        batch = stream.batch(step)
        np.testing.assert_array_equal(dataset[step]["x1"], batch.x1)
        np.testing.assert_array_equal(dataset[step]["cond"], batch.cond)
    with pytest.raises(ValueError, match="num_epochs must be an integer >= 1, got 0"):
        gft.pairing.grain_dataset(x, seed=4, num_epochs=0)


def test_without_grain_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'pip install "gft_jax\[grain\]"'):
        gft.pairing.grain_dataset(values_of(), seed=0, num_epochs=1)


def test_rows_of_a_grain_source_make_the_batches_of_the_array():
    x = values_of()
    plain = gft.pairing.batches(x, batch_size=6, seed=0)
    rows = gft.data.from_grain([{"image": row, "name": b"?"} for row in x], "image")
    same(gft.pairing.batches(rows, batch_size=6, seed=0).batch(2), plain.batch(2))
    grain = pytest.importorskip("grain", reason='needs the extra "grain"')
    dataset = grain.MapDataset.source(x).map(lambda row: 2 * row)
    doubled = gft.pairing.batches(gft.data.from_grain(dataset), batch_size=6, seed=0).batch(2)
    np.testing.assert_array_equal(doubled.x1, 2 * plain.batch(2).x1)
    with pytest.raises(ValueError, match="finite in number; leave out repeat"):
        gft.data.from_grain(dataset.repeat())


@pytest.mark.parametrize(
    ("source", "field", "message"),
    [
        ([], None, "has 0 elements"),
        ([{"a": 1.0}], None, "element 0 of the source is a dict of a, and field is None"),
        ([{"a": 1.0}], "b", "a dict of a, and field is 'b'"),
        ([1.0], "b", "is float, and field is 'b'"),
        (["text"], None, "arrays of numbers, got dtype <U4"),
    ],
)
def test_sources_that_hold_no_rows(source, field, message):
    with pytest.raises(ValueError, match=message):
        gft.data.from_grain(source, field)


def test_elements_must_be_alike():
    rows = gft.data.from_grain([np.zeros(2), np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match=r"element 2 of the source has shape \(3,\)"):
        rows[np.array([0, 2])]

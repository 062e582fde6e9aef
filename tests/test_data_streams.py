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
from gft_jax.couplings import semidiscrete
from gft_jax.pairing import row_order

OPTIONS = {"batch_size": 6, "seed": 0, "cond": np.arange(20)}
"""Of most streams here: those of the same shapes share their programs."""


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
    options = {"batch_size": 6, "seed": 1, "coupling": gft.couplings.independent(), "pair_size": 12}
    cond = {"label": labels, "text": embedded}
    lazy = gft.pairing.batches(Recorded(x), cond=cond | {"text": Recorded(embedded)}, **options)
    plain = gft.pairing.batches(x, cond=cond, **options)
    same(lazy.batch(3), plain.batch(3))
    same(lazy.many(1, 4), plain.many(1, 4))


def test_rows_are_read_once_in_a_scan_and_then_those_of_the_batch_alone(monkeypatch):
    monkeypatch.setattr(gft.data.rows, "CHUNK_BYTES", 7 * 24)
    rows, finite = Recorded(values_of()), Recorded(values_of(), finite=True)
    stream = gft.pairing.batches(rows, **OPTIONS)
    assert [index for index, _ in rows.reads] == [[*range(7)], [*range(7, 14)], [*range(14, 20)]]
    rows.reads.clear()
    stream.batch(5)
    assert [index for index, _ in rows.reads] == [row_order(20, 6, 0, 5).tolist()]
    gft.pairing.batches(finite, batch_size=6, seed=1)
    gft.pairing.batches(
        gft.data.normalised(finite, gft.data.Normalisation(np.zeros(1), np.ones(1))), batch_size=6, seed=1
    )
    assert finite.reads == []  # finite by construction, also normalised


def test_a_stream_that_begins_at_a_step_has_its_batches():
    x = values_of()
    options = OPTIONS | {"augment": gft.data.horizontal_flip()}
    through = gft.pairing.batches(Recorded(x), **options).many(0, 6)
    same(gft.pairing.batches(Recorded(x), **options).batch(5), jax.tree.map(lambda leaf: leaf[5], through))
    with gft.pairing.ahead(gft.pairing.batches(Recorded(x), **options), depth=3) as batches:
        same(batches.batch(4), jax.tree.map(lambda leaf: leaf[4], through))


def test_ahead_reads_rows_in_its_thread_several_batches_before_they_are_asked_for():
    rows = Recorded(values_of(), finite=True)
    stream = gft.pairing.batches(rows, **OPTIONS)
    read = threading.Semaphore(0)

    def batch(step, inner=stream.batch):
        made = inner(step)
        assert all(isinstance(leaf, jax.Array) and leaf.committed is False for leaf in (made.x0, made.x1))
        read.release()
        return made

    with gft.pairing.ahead(stream._replace(batch=batch), depth=3, num_steps=10) as batches:
        batches.batch(2)
        assert all(read.acquire(timeout=60) for _ in range(4))  # 2 to 5, though 2 alone was asked for
    assert [index for index, _ in rows.reads] == [row_order(20, 6, 0, step).tolist() for step in (2, 3, 4, 5)]
    assert {name for _, name in rows.reads} == {"gft_jax.pairing.ahead_0"}


def test_flips_have_their_frequency_are_of_the_row_alone_and_move_nothing_else():
    num, probability = 4000, 0.3
    x = values_of()
    options = OPTIONS | {"batch_size": num}
    plain = gft.pairing.batches(x, **options).batch(2)
    stream = gft.pairing.batches(x, **options, augment=gft.data.horizontal_flip(probability))
    batch = stream.batch(2)

    def flipped(batch, step):
        mirrored = x[row_order(20, len(batch.x1), 0, step)][:, :, ::-1]
        return (np.asarray(batch.x1) == mirrored).all(axis=(1, 2, 3))

    flips = flipped(batch, 2)
    np.testing.assert_array_equal(
        batch.x1, np.where(flips[:, None, None, None], plain.x1[:, :, ::-1], plain.x1)
    )
    same(batch._replace(x1=None), plain._replace(x1=None))

    def z_score(rate):
        return abs(flips.mean() - rate) / np.sqrt(rate * (1 - rate) / num)

    assert z_score(probability) < 4
    assert z_score(0.35) > 5  # power
    # Independent of the noise, and of the flips of another step; the same in a batch of fewer rows.
    bound = 4 / np.sqrt(num)
    assert abs(np.corrcoef(flips, np.asarray(batch.x0).reshape(num, -1)[:, 0])[0, 1]) < bound
    assert abs(np.corrcoef(flips, flipped(stream.batch(1), 1))[0, 1]) < bound
    few = gft.pairing.batches(x, **OPTIONS, augment=gft.data.horizontal_flip(probability)).batch(2)
    np.testing.assert_array_equal(flipped(few, 2), flips[:6])


def test_the_coupling_and_its_diagnosis_see_the_flipped_rows(monkeypatch):
    seen = []

    def coupling(key, x0, x1, cond=None, source_cond=None):
        jax.debug.callback(lambda x1: seen.append(np.asarray(x1)), x1)
        return gft.couplings.independent()(key, x0, x1)

    def diagnosis(pairing, x0, x1):
        seen.append(x1)
        return gft.couplings.Diagnostics(*jnp.zeros(len(gft.couplings.Diagnostics._fields)))

    monkeypatch.setattr("gft_jax.pairing.stream.diagnosis", diagnosis)
    x = values_of()
    stream = gft.pairing.batches(x, **OPTIONS, coupling=coupling, augment=gft.data.horizontal_flip(1.0))
    flipped = x[row_order(20, 6, 0, 1)][:, :, ::-1]
    np.testing.assert_array_equal(stream.batch(1).x1, flipped)
    stream.diagnose(1)
    jax.effects_barrier()
    assert len(seen) == 3  # by the batch, by its pairing for the diagnosis, and by the diagnosis
    for rows in seen:
        np.testing.assert_array_equal(rows, flipped)


def test_a_rate_of_flips_is_no_new_program(caplog):
    x = values_of()
    for rate in (0.25, 0.75):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level(logging.WARNING):
            gft.pairing.batches(x, **OPTIONS, augment=gft.data.horizontal_flip(rate)).batch(0)
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
    pixels = np.random.default_rng(0).integers(0, 256, (20, 2, 3), np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / str(number % 2) / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    folder = gft.data.images(tmp_path)
    options = OPTIONS | {"cond": folder.labels}
    stream = gft.pairing.batches(folder, **options, num_classes=2)
    rows = (np.concatenate([pixels[::2], pixels[1::2]])[..., None] / 127.5 - 1).astype(np.float32)
    batch = stream.batch(7)
    same(batch, gft.pairing.batches(rows, **options).batch(7))
    np.testing.assert_array_equal(batch.cond, row_order(20, 6, 0, 7) >= 10)


def test_sources_and_semidiscrete_streams_take_rows_and_hold_them_whole():
    x = values_of()
    keys = jax.random.split(jax.random.key(0), 5)
    same(gft.pairing.rows_of(Recorded(x))(keys), gft.pairing.rows_of(x)(keys))
    zeros = jnp.zeros(20), semidiscrete.marks(semidiscrete.flat_rows(x)), *jnp.zeros(3), jnp.asarray(True)
    potentials = gft.couplings.SemidiscretePotentials(*zeros)
    same(
        gft.pairing.chosen_batches(Recorded(x), potentials, **OPTIONS).batch(1),
        gft.pairing.chosen_batches(x, potentials, **OPTIONS).batch(1),
    )


def test_a_dataset_of_grain_has_the_rows_of_the_stream_in_its_order():
    pytest.importorskip("grain", reason='needs the extra "grain"')
    x, labels = values_of(), np.arange(20)
    stream = gft.pairing.batches(x, **(OPTIONS | {"seed": 4}))
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
    plain = gft.pairing.batches(x, **OPTIONS)
    rows = gft.data.from_grain([{"image": row, "name": b"?"} for row in x], "image")
    same(gft.pairing.batches(rows, **OPTIONS).batch(2), plain.batch(2))
    grain = pytest.importorskip("grain", reason='needs the extra "grain"')
    dataset = grain.MapDataset.source(x).map(lambda row: 2 * row)
    doubled = gft.pairing.batches(gft.data.from_grain(dataset), **OPTIONS).batch(2)
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

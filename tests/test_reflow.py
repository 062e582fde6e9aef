"""Pairs of a model on disk: what they hold, whose they are, and that they go on after a kill."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft
from gft_jax.drifts import from_function
from gft_jax.gaussian import Gaussian, marginal_velocity
from gft_jax.reflow import batches, make_pairs, open_pairs
from gft_jax.reflow import pairs as pairs_module
from gft_jax.reflow.files import ArrayFile

SOURCE = gft.pairing.standard_normal((2,))
PARAMS = {"scale": jnp.asarray(2.0), "shift": jnp.asarray([1.0, -1.0])}
LABELS = np.arange(10) % 3


def flow(params, x0, cond):
    """A flow in closed form; a label moves it."""
    moved = params["scale"] * x0 + params["shift"]
    return moved if cond is None else moved + cond[:, None]


def made(directory, **changes):
    settings = {"num_pairs": 10, "seed": 3, "cond": LABELS, "chunk_size": 4, "progress": False}
    return make_pairs(directory, flow, changes.pop("params", PARAMS), SOURCE, **settings | changes)


def test_pairs_are_those_of_the_flow_whatever_the_chunks(tmp_path):
    pairs = made(tmp_path / "pairs")
    assert not (tmp_path / "pairs.partial").exists()
    np.testing.assert_allclose(pairs.x1, 2 * pairs.x0 + [1, -1] + LABELS[:, None], rtol=1e-6)
    np.testing.assert_array_equal(pairs.cond, LABELS)
    assert len(np.unique(pairs.x0)) == 20
    for other in (made(tmp_path / "whole", chunk_size=1000), open_pairs(tmp_path / "pairs", PARAMS)):
        np.testing.assert_array_equal(other.x0, pairs.x0)
        np.testing.assert_array_equal(other.x1, pairs.x1)
    assert not np.isclose(made(tmp_path / "seed", seed=4).x0, pairs.x0).any()
    named = {"label": LABELS, "text": np.ones((10, 2), np.float32)}

    def by_name(params, x0, cond):
        return flow(params, x0, cond["label"]) + cond["text"]

    again = make_pairs(
        tmp_path / "named", by_name, PARAMS, SOURCE, num_pairs=10, seed=3, cond=named, progress=False
    )
    np.testing.assert_allclose(again.x1, pairs.x1 + 1, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, again.cond, named)


def test_a_call_that_was_cut_short_goes_on(tmp_path):
    expected = made(tmp_path / "expected")
    calls = []

    def failing(params, x0, cond):
        def count(x):
            calls.append(len(x))
            return np.full_like(x, np.nan) if len(calls) == 2 else x

        x0 = jax.pure_callback(count, jax.ShapeDtypeStruct(x0.shape, x0.dtype), x0)
        return flow(params, x0, cond)

    arguments = {"num_pairs": 10, "seed": 3, "cond": LABELS, "chunk_size": 4, "progress": False}
    directory = tmp_path / "pairs"
    with pytest.raises(ValueError, match=r"4 samples of a chunk of 4.*\[4, 5, 6, 7\].*before are kept"):
        make_pairs(directory, failing, PARAMS, SOURCE, **arguments)
    with pytest.raises(ValueError, match=r"no finished pairs, but some in .*partial"):
        open_pairs(directory, PARAMS)
    with pytest.raises(ValueError, match="made otherwise: seed is 3 there, and 5 is asked for"):
        made(directory, seed=5)
    before = len(calls)
    pairs = make_pairs(directory, failing, PARAMS, SOURCE, **arguments)
    assert calls[before:] == [1, 4, 4]  # the first chunk is not made again, and its first pair is compared
    np.testing.assert_array_equal(pairs.x1, expected.x1)
    make_pairs(directory, failing, PARAMS, SOURCE, **arguments)
    assert calls[before + 3 :] == [1]


def test_pairs_that_lack_nothing_but_their_name_are_not_made_again(tmp_path, monkeypatch):
    directory, replace, written = tmp_path / "pairs", os.replace, []

    def killed(source, target):
        if target == directory:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        made(directory)
    monkeypatch.undo()
    monkeypatch.setattr(ArrayFile, "write", lambda *arguments: written.append(arguments))
    pairs = made(directory)
    assert not written
    np.testing.assert_allclose(pairs.x1, flow(PARAMS, pairs.x0, LABELS), rtol=1e-6)
    assert sorted(path.name for path in directory.iterdir()) == ["cond.npy", "pairs.json", "x0.npy", "x1.npy"]


@pytest.mark.parametrize("where", ["np.save", "ArrayFile.create", "ArrayFile.write", "note_rows"])
def test_a_kill_at_any_place_loses_no_more_than_a_chunk(tmp_path, monkeypatch, where):
    """Each of these is done in part, and then the program ends."""
    expected, calls = made(tmp_path / "expected"), []
    owner, name = {
        "np.save": (np, "save"),
        "ArrayFile.create": (ArrayFile, "create"),
        "ArrayFile.write": (ArrayFile, "write"),
        "note_rows": (pairs_module, "note_rows"),
    }[where]
    original = getattr(owner, name)

    def killed(*arguments):
        calls.append(1)
        # The second of them: x1 after x0, or the second chunk; of conditions there is one file.
        if len(calls) == (1 if owner is np else 2):
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "pairs")
    monkeypatch.undo()
    pairs = made(tmp_path / "pairs")
    for ours, theirs in zip(pairs[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_pairs_of_another_source_or_sampler_are_refused(tmp_path, monkeypatch):
    """Whether all pairs are there or some; rounding of another device is no other sampler."""
    arguments = {"num_pairs": 10, "seed": 3, "chunk_size": 4, "progress": False}

    def farther(keys):
        return SOURCE(keys)[0] + 1, None

    def by_a_factor(factor):
        return lambda params, x0, cond: factor * flow(params, x0, cond)

    done, begun = tmp_path / "done", tmp_path / "begun"
    make_pairs(done, flow, PARAMS, SOURCE, **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(pairs_module, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_pairs(begun, flow, PARAMS, SOURCE, **arguments)
    for directory in (done, begun):
        with pytest.raises(ValueError, match=r"made otherwise.*comes of source"):
            make_pairs(directory, flow, PARAMS, farther, **arguments)
        with pytest.raises(ValueError, match=r"made otherwise.*comes of sample"):
            make_pairs(directory, by_a_factor(1.1), PARAMS, SOURCE, **arguments)
        make_pairs(directory, by_a_factor(1 + 1e-5), PARAMS, SOURCE, **arguments)


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_the_rows_that_are_said_to_be_there_must_be_there(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pairs_module, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "pairs")
    file = tmp_path / "pairs.partial" / "x1.npy"
    content = file.read_bytes()
    for damage in (lambda: file.write_bytes(content[:-1]), file.unlink):
        damage()
        with pytest.raises(ValueError, match=r"x1\.npy is missing or cut short, and 10 pairs"):
            made(tmp_path / "pairs")


def test_pairs_of_another_model_are_refused_by_content(tmp_path):
    directory = tmp_path / "pairs"
    made(directory, settings={"num_steps": 8})
    same = jax.tree.map(lambda leaf: np.array(leaf), PARAMS)
    open_pairs(directory, same)
    other = same | {"scale": np.nextafter(same["scale"], np.float32(3))}
    for call in (
        lambda: open_pairs(directory, other),
        lambda: made(directory, params=other, settings={"num_steps": 8}),
    ):
        with pytest.raises(ValueError, match=r"made by another model.*Give those that made them"):
            call()
    with pytest.raises(ValueError, match=r"made otherwise: settings is \{'num_steps': 8\} there"):
        made(directory, settings={"num_steps": 9})
    with pytest.raises(ValueError, match="made otherwise: cond_content"):
        made(directory, settings={"num_steps": 8}, cond=LABELS[::-1])


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    directory = tmp_path / "pairs"
    rows = [
        ({"num_pairs": 0}, "num_pairs must be an integer >= 1, got 0"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"seed": -1}, "seed"),
        ({"cond": LABELS[:4]}, r"cond must have one row for each of the 10"),
        ({"cond": [LABELS, LABELS]}, "an array or a dict of arrays"),
        ({"cond": {"a/b": LABELS}}, "names that are identifiers"),
        ({"settings": {"drift": flow}}, "what JSON can hold"),
        ({"cond": jnp.ones(10, jnp.bfloat16)}, "dtype bfloat16.*float32"),
    ]
    for changes, message in rows:
        with pytest.raises(ValueError, match=message):
            made(directory, **changes)
    with pytest.raises(ValueError, match="give its field x"):
        make_pairs(directory, lambda p, x0, c: x0[:, :1], PARAMS, SOURCE, num_pairs=4, seed=0)
    with pytest.raises(ValueError, match="conditions of its own"):
        make_pairs(
            directory, flow, PARAMS, gft.pairing.rows_of(np.ones((3, 2)), np.ones(3)), num_pairs=4, seed=0
        )
    with pytest.raises(ValueError, match="holds no finished pairs"):
        open_pairs(directory, PARAMS)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="one process, and this one has 2"):
            made(directory)
    assert not list(tmp_path.iterdir())
    pairs = made(directory, num_pairs=np.int64(10), seed=np.int64(3), chunk_size=np.int64(4))
    np.testing.assert_array_equal(pairs.x0, made(tmp_path / "plain").x0)


@pytest.mark.parametrize("name", ["pairs", "pairs.partial"])
def test_what_lies_in_the_way_is_left_alone(tmp_path, name):
    path = tmp_path / name
    path.write_text("notes")
    with pytest.raises(FileExistsError, match=f"{name} is or holds something else"):
        made(tmp_path / "pairs")
    assert path.read_text() == "notes"
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("notes")
    with pytest.raises(FileExistsError, match=f"{name} is or holds something else"):
        made(tmp_path / "pairs")
    assert [each.name for each in path.iterdir()] == ["notes.txt"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stream_gives_whole_pairs_in_the_order_of_the_other_streams(tmp_path):
    pairs = made(tmp_path / "pairs")
    stream = batches(pairs, batch_size=4, seed=7)
    plain = gft.pairing.batches(np.asarray(pairs.x1), batch_size=4, seed=7, cond=LABELS)
    for step in (0, 5):
        batch, other = stream.batch(step), plain.batch(step)
        np.testing.assert_array_equal(batch.x1, other.x1)
        np.testing.assert_array_equal(batch.cond, other.cond)
        np.testing.assert_array_equal(*map(jax.random.key_data, (batch.key, other.key)))
        np.testing.assert_allclose(batch.x1, flow(PARAMS, batch.x0, batch.cond), rtol=1e-6)
    many = stream.many(4, 2)
    for ours, theirs in zip(jax.tree.leaves(many), jax.tree.leaves(stream.batch(5)), strict=True):
        assert bool(jnp.all(ours[1] == theirs))
    half = batches(pairs, batch_size=4, seed=7, share=gft.pairing.Share(1, 2)).batch(5)
    np.testing.assert_array_equal(half.x0, stream.batch(5).x0[2:])
    with pytest.raises(ValueError, match="not coupled"):
        stream.pairing(0)


def test_reflow_makes_one_step_of_a_curved_flow_right(tmp_path):
    """From N(0, 1) to N(3, 0.2^2), independently paired, one Euler step ends at 3 whatever x0; after reflow of its
    pairs the lines do not cross, and one step of the fitted drift has the width of the data."""
    source, target = Gaussian(jnp.zeros(1), jnp.eye(1)), Gaussian(jnp.full(1, 3.0), jnp.full((1, 1), 0.04))
    velocity = marginal_velocity(gft.paths.linear(), source, target)
    curved = from_function(velocity)

    def sample(params, x0, cond):
        return gft.sampling.sample_ode(curved, params, x0, num_steps=256).x

    pairs = make_pairs(
        tmp_path / "pairs",
        sample,
        (),
        gft.pairing.standard_normal((1,)),
        num_pairs=512,
        seed=0,
        progress=False,
    )
    x0 = jnp.linspace(-2, 2, 9)[:, None]
    assert float((x0 + velocity(jnp.zeros(9), x0)).std()) < 1e-5

    def line(params, t, x, cond=None):
        """The drift of a straight affine flow ``x0 -> a x0 + b``."""
        a, b = params
        return ((a - 1) * x + b) / (1 + t[:, None] * (a - 1))

    tuner = gft.finetuner(gft.objectives.flow_matching(line), optax.adam(2e-2), averaging=None)
    state = tuner.init(jax.random.key(0), params=jnp.asarray([1.0, 0.0]))
    stream = batches(pairs, batch_size=128, seed=0)
    state, _ = jax.jit(tuner.step_many)(state, None, stream.many(0, 600))
    ends = x0 + line(state.params, jnp.zeros(9), x0)
    np.testing.assert_allclose(ends, 3 + 0.2 * x0, atol=0.02)

"""The training loop on a drift of four numbers: checkpoints, preemption, batches left out, time, trace, log."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft
from experiments import loop
from experiments.log_sinks import check_installed, sinks_of
from experiments.loop import clock, guard, preemption
from experiments.run_folder import RunFolder
from gft_jax.checkpoints import Best, Checkpoints, load_params
from gft_jax.objectives import weighting
from gft_jax.objectives.time_sampling import uniform

ROOT = Path(__file__).parents[1]
STEPS, CHUNK = 24, 2
DATA = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32) + 3.0
PARAMS = {"w": np.eye(2, dtype=np.float32), "b": np.zeros(2, np.float32)}


def drift(params, t, x, cond=None):
    return x @ params["w"] + params["b"]


OBJECTIVE = gft.objectives.flow_matching(drift)
RUNNER = gft.parallel.single_device(gft.finetuner(OBJECTIVE, optax.adam(0.05)))


def poisoned(stream, *steps, row=3):
    """The same batches, but at some steps a row of the data is not finite."""

    def many(first, count):
        batches = stream.many(first, count)
        for step in steps:
            if first <= step < first + count:
                batches = batches._replace(x1=batches.x1.at[step - first, row].set(np.nan))
        return batches

    return stream._replace(many=many)


def make(folder, *, sinks=(), broken=(), **changes):
    folder.mkdir(exist_ok=True)
    stream = gft.pairing.batches(DATA, batch_size=8, seed=0)
    settings = dict(
        run=RunFolder(folder, sinks),
        method="plain",
        seed=0,
        runner=RUNNER,
        stream=poisoned(stream, *broken) if broken else stream,
        num_steps=STEPS,
        chunk=CHUNK,
        rate_flag="--learning-rate",
        evaluated=lambda params, base_params: params,
        shows_progress=False,
        objective=OBJECTIVE,
        best=Best("w2"),
        checkpoint_every=3 * CHUNK,
    )
    return loop.Loop(**(settings | changes))


def scores(params):
    """Lowest where the first number of b passes 0.5, in the middle of the run."""
    return {"w2": abs(float(params["b"][0]) - 0.5), "b": float(params["b"][0])}, np.zeros((1, 2))


def train(made, evaluate=scores):
    return made.train(PARAMS, None, evaluate)


def rows_of(folder, *kinds):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if not kinds or row["kind"] in kinds]


def comparable(folder):
    """The log without what may differ: times, and interruptions."""
    return [row for row in rows_of(folder) if row["kind"] not in ("timing", "preempted")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(make(folder))


def signals_at(step):
    """Scores that send a SIGTERM to this very process when the run comes to an evaluation."""
    evaluations = []

    def evaluate(params):
        evaluations.append(params)
        if (len(evaluations) - 1) * CHUNK == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return scores(params)

    return evaluate


def test_a_sigterm_saves_after_the_chunk_and_the_run_continues_to_the_same_result(
    tmp_path, uninterrupted, capsys
):
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watching():
        with pytest.raises(loop.Preempted, match=r"plain \(seed 0\) is saved at step 10"):
            train(make(tmp_path), signals_at(10))
        # What follows in this session does not begin.
        with pytest.raises(loop.Preempted, match="before other"):
            train(make(tmp_path / "other", method="other"))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "other" / "metrics.jsonl").exists()
    with Checkpoints(tmp_path / "checkpoints" / "plain-seed0") as checkpoints:
        assert checkpoints.latest_step() == 10  # not one of every sixth step
    assert [row["step"] for row in rows_of(tmp_path, "preempted")] == [10]
    folder, expected = uninterrupted
    with preemption.watching():
        params = train(make(tmp_path))
    assert "continues at step 10" in capsys.readouterr().out
    assert comparable(tmp_path) == comparable(folder)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_best_checkpoint_is_kept_and_its_parameters_beside_the_final_ones(uninterrupted):
    folder, final = uninterrupted
    evaluated = {row["step"]: row["w2"] for row in rows_of(folder, "evaluation")}
    saved = range(6, STEPS + 1, 6)
    best = min(saved, key=evaluated.get)
    assert evaluated[best] < evaluated[STEPS]  # else there would be nothing to see
    with Checkpoints(folder / "checkpoints" / "plain-seed0", keep_best=Best("w2")) as checkpoints:
        assert checkpoints.best_step() == best
        state, metadata = checkpoints.restore(RUNNER.init(jax.random.key(0), PARAMS), step=best)
    assert int(state.step) == best
    assert metadata["skipped"] == 0
    kept = load_params(folder / "params" / "plain-seed0-best", final)
    jax.tree.map(np.testing.assert_array_equal, kept, jax.device_get(state.params))
    assert scores(kept)[0]["w2"] == pytest.approx(evaluated[best], rel=1e-6)
    assert not np.array_equal(kept["b"], final["b"])
    assert [row["best_step"] for row in rows_of(folder, "best")] == [best]


def test_rows_of_single_steps_have_the_mean_of_those_of_a_chunk(tmp_path, uninterrupted):
    train(make(tmp_path, log_every=1))
    folder, _ = uninterrupted
    rows, chunks = rows_of(tmp_path, "train"), rows_of(folder, "train")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for key in ("loss", "grad_norm", "target_weight"):
        means = np.array([row[key] for row in rows]).reshape(-1, CHUNK).mean(axis=1)
        np.testing.assert_allclose(means, [row[key] for row in chunks], rtol=1e-6)


def test_every_nth_checkpoint_is_kept(tmp_path):
    train(make(tmp_path, best=None, checkpoint_every=CHUNK, keep_every=8))
    there = sorted(int(path.name) for path in (tmp_path / "checkpoints" / "plain-seed0").iterdir())
    assert there == [8, 16, 22, 24]
    assert not (tmp_path / "params" / "plain-seed0-best").exists()


def test_batches_that_are_not_finite_are_left_out_as_often_as_is_allowed(tmp_path, capsys):
    broken = (7, 9, 15)
    with pytest.raises(
        loop.Stopped, match=r"at step 16 .*; 2 batches were allowed to be left out; .*step 12"
    ):
        train(make(tmp_path, broken=broken, skips=2))
    assert [row["step"] for row in rows_of(tmp_path, "skipped")] == [8, 10]
    # The two of before still count: one more is not enough for two.
    with pytest.raises(loop.Stopped, match=r"at step 18 .*; 3 batches"):
        train(make(tmp_path, broken=(*broken, 17), skips=3))
    # A session that allows fewer than were left out before goes on, up to the next one.
    with pytest.raises(loop.Stopped, match=r"at step 16 .*step 12"):
        train(make(tmp_path, broken=broken, skips=0))
    params = train(make(tmp_path, broken=broken, skips=3))
    assert "3 batches left out" in capsys.readouterr().out
    assert [row["step"] for row in rows_of(tmp_path, "skipped")] == [8, 10, 16]
    # A step that is left out advances the count alone: the others are those of a run by hand.
    tuner = gft.finetuner(OBJECTIVE, optax.adam(0.05))
    state, stream = tuner.init(jax.random.key(0), PARAMS), gft.pairing.batches(DATA, batch_size=8, seed=0)
    step = jax.jit(tuner.step)
    for number in range(STEPS):
        if number in broken:
            state = state._replace(step=state.step + 1)
        else:
            state, _ = step(state, PARAMS, stream.batch(number))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, state.params)
    # Means of a chunk are over its finite steps.
    (row,) = (row for row in rows_of(tmp_path, "train") if row["step"] == 8)
    assert np.isfinite(row["loss"])
    assert np.isfinite(row["grad_norm"])


def test_a_loss_that_is_not_finite_is_named_with_rows_and_flow_times(tmp_path):
    with pytest.raises(loop.Stopped) as error:
        train(make(tmp_path, broken=(5,)))
    batch = gft.pairing.batches(DATA, batch_size=8, seed=0).batch(5)
    time = float(
        gft.objectives.path_rows.path_rows(gft.paths.linear(), uniform(), weighting.uniform, batch).t[3]
    )
    lower = int(10 * time) / 10
    text = "1 of its rows hold values that are not finite; the loss of 1 of 8 rows is not, "
    text += f"at flow times in [{lower:g}, "
    assert text in str(error.value)
    assert "plain (seed 0): loss or gradient is not finite at step 6 (loss nan" in str(error.value)
    assert not rows_of(tmp_path, "skipped")
    assert [row["step"] for row in rows_of(tmp_path, "train")] == [2, 4]


def test_flow_times_are_named_by_bins_of_a_tenth():
    times = np.array([0.02, 0.98, 1.0, 0.31, 0.29, 0.45])
    assert guard._bins(times) == "[0, 0.1], [0.2, 0.5], [0.9, 1]"
    assert guard._bins(np.array([0.5])) == "[0.5, 0.6]"

    def exploding(params, t, x, cond=None):
        return params["b"] / (t < 0.85)[:, None]

    objective = gft.objectives.flow_matching(exploding)
    state = gft.finetuner(objective, optax.sgd(0.1)).init(jax.random.key(0), PARAMS)
    batch = gft.pairing.batches(DATA, batch_size=256, seed=0).batch(0)
    text = guard.where_not_finite(
        objective, state._replace(params={**PARAMS, "b": jnp.ones(2)}), None, batch, 0.0
    )
    assert text.endswith("at flow times in [0.8, 1]")
    share = int(text.split(" of 256 rows")[0].rpartition(" ")[2]) / 256
    assert share == pytest.approx(0.15, abs=3 * np.sqrt(0.15 * 0.85 / 256))
    text = guard.where_not_finite(OBJECTIVE, state, None, batch, 0.0)
    assert text == "the loss of every row is finite, by the parameters after this chunk"


def test_the_clock_divides_all_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def spend(watch, part, seconds):
        with watch.timing(part):
            now[0] += seconds

    watch = clock.Clock()
    spend(watch, "evaluation", 5.0)
    for data, steps in ((1.0, 20.0), (2.0, 6.0), (1.0, 7.0)):
        spend(watch, "data", data)
        spend(watch, "steps", steps)
        watch.add_chunk(10)
    spend(watch, "checkpoints", 4.0)
    now[0] += 3.0  # the log
    reading = watch.reading()
    parts = {"data": 3.0, "steps": 13.0, "start": 21.0, "evaluation": 5.0, "checkpoints": 4.0, "other": 3.0}
    assert reading == {"seconds": 16.0, "steps": 20, "total": 49.0, "parts": parts}
    # A session that continues adds its own time; its first chunk compiles again.
    now[0] += 1000.0
    later = clock.Clock(**json.loads(json.dumps(reading)))
    spend(later, "steps", 30.0)
    later.add_chunk(10)
    spend(later, "steps", 7.0)
    later.add_chunk(10)
    now[0] += 1.0
    parts |= {"steps": 20.0, "start": 51.0, "other": 4.0}
    assert later.reading() == {"seconds": 23.0, "steps": 30, "total": 87.0, "parts": parts}
    words = clock.budget(later.reading())
    assert words.startswith("87.0 s: data and coupling 3 %, steps 23 %, first chunk, with compilation 59 %")
    assert words.endswith("; 767 ms a step")
    assert clock.Clock(seconds=1.0, steps=2).reading()["steps"] == 2  # of a checkpoint of an earlier version


def test_the_time_of_a_run_is_told_and_logged(tmp_path, capsys):
    train(make(tmp_path))
    (row,) = rows_of(tmp_path, "timing")
    assert sum(row["parts"].values()) == pytest.approx(row["total"], abs=0.01)
    assert row["steps"] == STEPS - CHUNK
    assert f"plain (seed 0): {clock.budget(row)}" in capsys.readouterr().out


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path, capsys):
    train(make(tmp_path, profile=(9, 13)))
    folder = tmp_path / "profile" / "plain-seed0"
    assert f"trace up to step 14 in {folder}" in capsys.readouterr().out
    (file,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = {
        int(event["args"]["step_num"])
        for event in events
        if event.get("name") == "train" and "step_num" in event.get("args", {})
    }
    assert steps == {8, 10, 12}
    assert any("step_many" in str(event.get("name")) or "jit" in str(event.get("name")) for event in events)
    (plane,) = folder.rglob("*.xplane.pb")
    assert b"train" in plane.read_bytes()


def test_tensorboard_gets_the_rows_and_drops_those_that_are_made_again(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs the extra tensorboard")

    def go(evaluate=scores):
        sinks = sinks_of(("tensorboard",), tmp_path)
        try:
            with preemption.watching():
                train(make(tmp_path, sinks=sinks), evaluate)
        finally:
            for sink in sinks:
                sink.close()

    with pytest.raises(loop.Preempted):
        go(signals_at(10))
    go()
    shown: dict[int, float] = {}
    for file in sorted((tmp_path / "tensorboard" / "plain-seed0").iterdir()):
        for event in map(event_pb2.Event.FromString, _records(file)):
            if event.session_log.status == event_pb2.SessionLog.START and event.step:
                shown = {step: value for step, value in shown.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "evaluation/w2":
                    assert event.step not in shown
                    shown[event.step] = value.simple_value
    logged = {row["step"]: row["w2"] for row in rows_of(tmp_path, "evaluation")}
    assert shown == pytest.approx(logged, rel=1e-6)


def _records(file):
    """The records of a file of events: length, its checksum, content, its checksum."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


def test_a_log_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"--log wandb needs wandb, which is not installed: pip install wandb"
    ):
        check_installed(("wandb",))
    with pytest.raises(ValueError, match=r"--log tensorboard needs tensorboardX.*\[tensorboard\]"):
        check_installed(("tensorboard",))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_log_for_which_there_is_no_room_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"the log .*metrics.jsonl cannot be written \(.*No space left.*--resume"
    ):
        RunFolder(tmp_path).log([{"kind": "train"}])  # no more than that: to read it would have no end


TWICE = """
import sys, time
from experiments.loop import preemption
with preemption.watching():
    print("ready", flush=True)
    while not preemption.requested():
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_sigterm_ends_the_process_at_once():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", TWICE],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for word in ("ready", "noted"):
        assert process.stdout.readline() == f"{word}\n"
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM
    assert errors.count("SIGTERM: stops after the current chunk") == 1

"""Which steps are kept, which is the best, and what is left of a save that fails."""

import itertools
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax
from gft_jax.checkpoints import Best, Checkpoints


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def save_all(directory, values, **rules):
    """One save for each value of the metric, from step 1 on; what is kept after each."""
    kept = []
    with Checkpoints(directory, **rules) as checkpoints:
        for step, value in enumerate(values, start=1):
            metrics = {"w2": value, "other": -value} if "keep_best" in rules else None
            checkpoints.save(step, {"x": jnp.full(3, float(step))}, {"step": step}, metrics)
            checkpoints.wait()
            kept.append(steps_in(directory))
    return kept


def test_the_newest_the_best_and_every_nth_are_kept(tmp_path):
    values = [0.9, 0.3, 0.5, 0.4, 0.6, 0.2, 0.8, 0.2, 0.7]
    kept = save_all(tmp_path, values, keep_latest=2, keep_best=Best("w2"), keep_every=4)
    for step, there in enumerate(kept, start=1):
        best = 1 + int(np.argmin(values[:step]))
        assert there == sorted({max(1, step - 1), step, best} | set(range(4, step + 1, 4)))
    assert kept[-1] == [4, 6, 8, 9]  # 6 and 8 are equally good: the first is the best
    with Checkpoints(tmp_path, keep_best=Best("w2")) as checkpoints:
        assert checkpoints.best_step() == 6
        restored, metadata = checkpoints.restore({"x": jnp.zeros(3)}, step=checkpoints.best_step())
        assert metadata == {"step": 6}
        np.testing.assert_array_equal(restored["x"], np.full(3, 6.0))
        # A writer of its own knows the metrics of those before it.
        checkpoints.save(10, {"x": jnp.zeros(3)}, metrics={"w2": 0.1})
        assert checkpoints.best_step() == 10
        checkpoints.save(11, {"x": jnp.zeros(3)}, metrics={"w2": 0.5})
        checkpoints.save(12, {"x": jnp.zeros(3)}, metrics={"w2": 0.5})
    assert steps_in(tmp_path) == [10, 11, 12]


def test_higher_is_better_where_that_is_said_and_what_is_not_finite_is_never_the_best(tmp_path):
    nan, inf = float("nan"), float("inf")
    kept = save_all(tmp_path, [nan, 0.1, inf, 0.5, -inf], keep_latest=1, keep_best=Best("w2", "higher"))
    assert kept == [[1], [2], [2, 3], [4], [4, 5]]
    assert Best("w2").of({1: {"w2": nan}, 2: {}, 3: {"other": 0.0}}) is None
    assert Best("w2").of({}) is None


def test_a_damaged_best_step_is_passed_over_for_the_second_best(tmp_path):
    save_all(tmp_path, [0.2, 0.1, 0.3], keep_latest=None, keep_best=Best("w2"))
    (tmp_path / "2" / "metrics" / "metrics").write_text('{"w2": 0.0}')
    with Checkpoints(tmp_path, keep_best=Best("w2")) as checkpoints:
        assert checkpoints.best_step() == 1
        assert checkpoints.skipped == (2,)
    shutil.rmtree(tmp_path / "1" / "info")  # half deleted
    with Checkpoints(tmp_path, keep_best=Best("w2")) as checkpoints:
        assert checkpoints.best_step() == 3


def test_steps_without_metrics_are_kept_as_the_newest_alone(tmp_path):
    save_all(tmp_path, [1.0, 2.0], keep_latest=None)
    with Checkpoints(tmp_path, keep_latest=1, keep_best=Best("w2")) as checkpoints:
        assert checkpoints.best_step() is None
        for step, value in ((3, 0.5), (4, 0.9)):
            checkpoints.save(step, {"x": jnp.zeros(3)}, metrics={"w2": value})
    assert steps_in(tmp_path) == [3, 4]


REFUSED = [
    (dict(keep_latest=0), r"keep_latest must be >= 1, .* got 0"),
    (dict(keep_every=0), r"keep_every must be >= 1, .* got 0"),
    (dict(keep_best=Best("w2", "smaller")), r'must be "lower" or "higher", got \'smaller\''),
]


@pytest.mark.parametrize(("rules", "message"), REFUSED)
def test_rules_that_make_no_sense_are_refused(tmp_path, without_hook, rules, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, **rules)


def test_metrics_without_the_rule_and_the_rule_without_metrics_are_refused(tmp_path):
    for rules, metrics in itertools.product(
        ({}, {"keep_best": Best("w2")}), (None, {"w2": 1.0}, {"fid": 1.0})
    ):
        if (metrics == {"w2": 1.0}) == bool(rules) and (metrics is None) != bool(rules):
            continue
        with (
            Checkpoints(tmp_path / "run", **rules) as checkpoints,
            pytest.raises(ValueError, match="metrics must"),
        ):
            checkpoints.save(1, {"x": jnp.zeros(3)}, metrics=metrics)
    assert not (tmp_path / "run").exists()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="give keep_best"):
        checkpoints.best_step()


FULL = """
import resource, sys, types
import jax, jax.numpy as jnp
# Its checkpoints alone: the whole package takes seconds to import
sys.modules["gft_jax"] = types.ModuleType("gft_jax")
sys.modules["gft_jax"].__path__ = [sys.argv[1]]
from gft_jax.checkpoints import Checkpoints, NotSaved
folder, limit = sys.argv[2], int(sys.argv[3])
def state(step, size=2**17):
    return {"x": jax.random.normal(jax.random.key(step), (size,))}
with Checkpoints(folder) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state(step), {"step": step})
    checkpoints.wait()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    large = state(3, 2**20)
    checkpoints.save(3, large)
    try:
        checkpoints.wait()
    except NotSaved as error:
        print(error.errno, error)
    restored, metadata = checkpoints.restore(state(0))
    assert metadata == {"step": 2} and (restored["x"] == state(2)["x"]).all()
    assert checkpoints.skipped == ()
    if not limit:  # what there was of it is gone, so there is room for as much as before
        checkpoints.save(3, state(3), {"step": 3})
        assert checkpoints.restore(state(0))[1] == {"step": 3}
"""
ON_A_SMALL_DISK = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'


def printed_by(command):
    done = subprocess.run(
        command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_full_disk_is_named_with_what_is_missing_and_the_steps_before_are_intact(tmp_path):
    in_a_namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*in_a_namespace, "true"], capture_output=True).returncode
    ):
        pytest.skip("this machine lets its users mount no file system of their own")
    program = [sys.executable, "-c", FULL, *gft_jax.__path__, str(tmp_path / "run"), "0"]
    printed = printed_by([*in_a_namespace, "sh", "-c", ON_A_SMALL_DISK, str(tmp_path), *program])
    number, _, text = printed.partition(" ")
    assert int(number) == 28
    assert f"the checkpoint of step 3 could not be written to {tmp_path / 'run'}: the disk is full" in text
    assert "It takes up to 4.2 MB" in text
    free, missing = (float(text.split(before)[1].split(" MB")[0]) for before in (" MB, and ", "at most "))
    assert free + missing == pytest.approx(4.2, abs=0.11)
    assert 2.0 < free < 4.2
    assert "the one of step 2 is intact" in text


@pytest.mark.slow
def test_a_file_that_may_not_grow_so_large_is_named_and_the_steps_before_are_intact(tmp_path):
    program = [sys.executable, "-c", FULL, *gft_jax.__path__, str(tmp_path / "run"), str(2**21)]
    printed = printed_by(program)
    assert printed.startswith("27 the checkpoint of step 3 could not be written")
    assert "(ulimit -f); the one of step 2 is intact" in printed
    assert steps_in(tmp_path / "run") == [1, 2]

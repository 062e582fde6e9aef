import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import gft_jax
from gft_jax.checkpoints import Checkpoints, Unreadable, fingerprint, has_params, load_params, save_params


def everything(offset=0.0):
    """A state with each kind of leaf and container that training states hold."""
    params = {
        "w": jnp.arange(6.0).reshape(3, 2) / 7 + offset,
        "b": jnp.full((2,), 0.1 + offset, jnp.bfloat16),
    }
    return {
        "params": params,
        "optimizer": optax.adamw(1e-3).init(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(7, impl="rbg"), 3),
        "no keys": jax.random.split(jax.random.key(7), 0),
        "step": jnp.int32(3),
        "flag": jnp.array(True),
        "complex": jnp.array([1 + 2j, 3 - 4j]),
        "special": jnp.array([-0.0, jnp.inf, jnp.nan, 1e-40]),
        "host": np.arange(5.0) / 3,  # float64, which jax would cut to float32
        "host scalar": np.float64(1 / 3),
        "nothing": (None, (), {}, []),
        "no rows": jnp.zeros((0, 4), jnp.float16),
        "no rows on the host": np.zeros((2, 0)),
        # Joined by dots, the two have one name
        "a.b": jnp.float32(1.0),
        "a": {"b": jnp.float32(2.0)},
        "with/slash": [jnp.float32(3.0)],
    }


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_identical(restored, saved):
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(saved), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert one.dtype == other.dtype, name
        assert one.shape == other.shape, name
        assert bits(one) == bits(other), name
        if isinstance(other, np.ndarray | np.generic):
            assert isinstance(one, np.ndarray), name
        else:
            assert one.devices() == jnp.zeros(()).devices(), name


def listing(directory):
    return sorted(path.name for path in pathlib.Path(directory).iterdir())


@pytest.fixture
def without_kept_programs():
    """Programs are compiled and not taken from the cache of the tests: jaxlib 0.10.0 prints a line for each that is."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("without_kept_programs")
def test_a_state_comes_back_bit_for_bit_with_its_metadata(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    states = {step: everything(step) for step in (0, 3, 10)}
    metadata = {"config": {"lr": 1e-3, "layers": [1, 2]}, "fingerprint": "abc"}
    with Checkpoints("run/checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest_step() is None
        assert not pathlib.Path("run").exists()
        for step, state in states.items():
            checkpoints.save(step, state, {**metadata, "at": step})
        assert checkpoints.latest_step() == 10
        restored, saved_metadata = checkpoints.restore(states[0])
        assert_identical(restored, states[10])
        assert saved_metadata == {**metadata, "at": 10}
    assert listing("run/checkpoints") == ["10", "3"]  # the oldest is gone, and no trash is left
    # A reader of its own, from shapes alone (numpy leaves cannot be told from those)
    abstract = jax.eval_shape(lambda: {"params": states[3]["params"], "key": states[3]["key"]})
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        restored, saved_metadata = checkpoints.restore({**states[3], **abstract}, step=3)
        assert_identical(restored, states[3])
        assert saved_metadata["at"] == 3
        with pytest.raises(FileNotFoundError, match=r"no complete checkpoint of step 0 in .*run/checkpoints"):
            checkpoints.restore(states[0], step=0)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_a_save_is_of_the_state_at_the_call(tmp_path):
    """The buffers may be donated or written over while the save still runs."""
    state = {"device": jnp.arange(2.0**20), "host": np.arange(2.0**18)}
    before = jax.tree.map(lambda leaf: np.array(leaf), state)
    step = jax.jit(lambda x: -x, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        state["device"] = step(state["device"])
        state["host"][:] = -1.0
        restored, metadata = checkpoints.restore(state)
    assert metadata == {}
    np.testing.assert_array_equal(restored["device"], before["device"])
    np.testing.assert_array_equal(restored["host"], before["host"])


def test_a_step_is_written_once_and_steps_increase(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.zeros(3)})
        for step in (5, 4, -1):
            with pytest.raises(
                ValueError, match=f"after the latest checkpoint of {tmp_path}, got {step} after 5"
            ):
                checkpoints.save(step, {"x": jnp.ones(3)})
        restored, _ = checkpoints.restore({"x": jnp.ones(3)})
        np.testing.assert_array_equal(restored["x"], np.zeros(3))
    with pytest.raises(ValueError, match=r"keep_latest must be >= 1, .* got 0"):
        Checkpoints(tmp_path, keep_latest=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    save_params(directory, everything())
    return directory


MISMATCHES = {
    "dtype": (
        lambda t: {**t, "params": {**t["params"], "w": t["params"]["w"].astype(jnp.bfloat16)}},
        "['params']['w']: float32[3, 2] on disk, bfloat16[3, 2] asked for",
    ),
    "shape": (
        lambda t: {**t, "params": {**t["params"], "w": t["params"]["w"].T}},
        "['params']['w']: float32[3, 2] on disk, float32[2, 3] asked for",
    ),
    "extra leaf": (lambda t: {**t, "z": jnp.zeros(4)}, "['z']: nothing on disk, float32[4] asked for"),
    "missing leaf": (
        lambda t: {name: value for name, value in t.items() if name != "step"},
        "['step']: int32[] on disk, nothing asked for",
    ),
    "legacy key": (
        lambda t: {**t, "key": jax.random.key_data(t["key"])},
        "['key']: key<fry>[] on disk, uint32[2] asked for",
    ),
    "other generator": (
        lambda t: {**t, "key": jax.random.key(7, impl="rbg")},
        "['key']: key<fry>[] on disk, key<rbg>[] asked for",
    ),
    "other container": (
        lambda t: {**t, "nothing": (None, None, {}, [])},
        "['nothing'][1]: empty tuple on disk, empty NoneType asked for",
    ),
    "fewer containers": (
        lambda t: {**t, "nothing": (None, (), {})},
        "['nothing'][3]: empty list on disk, nothing asked for",
    ),
    "other optimizer": (
        lambda t: {**t, "optimizer": optax.sgd(1e-3, momentum=0.9).init(t["params"])},
        "['optimizer'][0].count: int32[] on disk, nothing asked for",
    ),
    "size zero": (
        lambda t: {**t, "no rows": jnp.zeros((0, 5), jnp.float16)},
        "['no rows']: float16[0, 4] on disk, float16[0, 5] asked for",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_tree_that_differs_from_the_one_on_disk_is_refused_and_named(saved, name):
    change, message = MISMATCHES[name]
    with pytest.raises(ValueError, match="does not fit the tree to restore") as error:
        load_params(saved, change(everything()))
    assert f"  {message}" in str(error.value).splitlines()


def test_double_precision_on_disk_is_not_cut_in_silence(saved):
    like = {**everything(), "host": jax.ShapeDtypeStruct((5,), np.float64)}
    with pytest.raises(ValueError, match=r"\['host'\] as float64\[5\] needs jax_enable_x64"):
        load_params(saved, like)


def test_parameters_are_written_once(saved, tmp_path):
    assert_identical(load_params(saved, everything()), everything())
    with pytest.raises(FileExistsError, match=f"{saved} holds a checkpoint already"):
        save_params(saved, everything(1.0))
    assert_identical(load_params(saved, everything()), everything())
    with pytest.raises(FileNotFoundError, match="no complete checkpoint of step 0"):
        load_params(tmp_path / "nowhere", everything())
    assert not (tmp_path / "nowhere").exists()


def test_steps_without_their_commit_mark_are_passed_over(tmp_path):
    with Checkpoints(tmp_path, keep_latest=None) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, {"x": jnp.full(3, float(step))})
    # What a kill in the middle of a deletion, or of a save, leaves
    (tmp_path / "5" / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(tmp_path / "4" / "info")
    (tmp_path / "3" / "state" / "_METADATA").unlink()
    shutil.copytree(tmp_path / "5", tmp_path / "6.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "5", tmp_path / "_deleted" / "0")
    (tmp_path / "007").mkdir()
    with ocp.CheckpointManager(tmp_path) as plain:
        assert plain.latest_step() == 5  # which is why the marks are looked for
    like = {"x": jnp.zeros(3)}
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.latest_step() == 2
        assert checkpoints.skipped == (3, 4, 5)
        restored, _ = checkpoints.restore(like)
        np.testing.assert_array_equal(restored["x"], np.full(3, 2.0))
        with pytest.raises(
            FileNotFoundError, match=r"complete checkpoint of step 5 in .* steps: \[3, 4, 5\]"
        ):
            checkpoints.restore(like, step=5)
        checkpoints.save(3, {"x": jnp.full(3, 30.0)})  # training goes on from 2
        assert checkpoints.skipped == ()
        restored, _ = checkpoints.restore(like)
        np.testing.assert_array_equal(restored["x"], np.full(3, 30.0))
    names = [name.split("-")[0] for name in listing(tmp_path)]
    assert names == ["007", "2", "3", "3.incomplete", "4.incomplete", "5.incomplete"]


def array_data(step):
    """The file that holds the most of a step."""
    return max((step / "state").rglob("d/*"), key=lambda file: file.stat().st_size)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "array data cut": lambda step: cut(array_data(step)),
    "array data missing": lambda step: array_data(step).unlink(),
    "a bit flipped in array data": lambda step: flip_a_bit(array_data(step)),
    "metadata of the caller cut": lambda step: cut(step / "info" / "metadata"),
    "commit mark empty": lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b""),
    "checksums cut": lambda step: cut(step / "checksums.json"),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two") / "steps"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.linspace(0.0, step, 1000)}, {"step": step})
    return directory


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_step_is_passed_over_for_the_one_before(two_steps, tmp_path, name):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    like = {"x": jnp.zeros(1000)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(like)[1] == {"step": 2}
    DAMAGES[name](tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        restored, metadata = checkpoints.restore(like)
        assert metadata == {"step": 1}
        np.testing.assert_array_equal(restored["x"], jnp.linspace(0.0, 1.0, 1000))
        assert (checkpoints.skipped, checkpoints.latest_step()) == ((2,), 1)


def test_a_step_without_checksums_is_restored_or_passed_over_where_that_fails(two_steps, tmp_path):
    """As an earlier version wrote it."""
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    for step in ("1", "2"):
        (tmp_path / step / "checksums.json").unlink()
    like = {"x": jnp.zeros(1000)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(like)[1] == {"step": 2}
    cut(array_data(tmp_path / "2"))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Unreadable, match=f"{tmp_path}/2 cannot be read .*; delete it"):
            checkpoints.restore(like, step=2)
        assert checkpoints.restore(like)[1] == {"step": 1}
        assert checkpoints.skipped == (2,)
        with pytest.raises(ValueError, match="does not fit the tree"):  # the caller's mistake, not the disk's
            checkpoints.restore({"x": jnp.zeros(1001)})
        cut(array_data(tmp_path / "1"))
        with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* incomplete steps: \[1, 2\]"):
            checkpoints.restore(like)
        checkpoints.save(1, like, {"step": "again"})
        assert checkpoints.restore(like)[1] == {"step": "again"}


def test_an_error_that_the_files_cannot_be_blamed_for_passes_nothing_over(two_steps, monkeypatch):
    def restore(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with Checkpoints(two_steps) as checkpoints, pytest.raises(RuntimeError, match="out of memory"):
        checkpoints.restore({"x": jnp.zeros(1000)})


def test_damaged_parameters_are_set_aside_by_the_next_save(tmp_path):
    old, new = ({"x": jnp.full(1000, value)} for value in (1.0, 2.0))
    save_params(tmp_path / "base", old)
    flip_a_bit(tmp_path / "base" / "0" / "info" / "metadata")
    assert not has_params(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match="no complete checkpoint of step 0"):
        load_params(tmp_path / "base", new)
    save_params(tmp_path / "base", new)
    np.testing.assert_array_equal(load_params(tmp_path / "base", old)["x"], new["x"])
    assert [name.split("-")[0] for name in listing(tmp_path)] == ["base", "base.incomplete"]


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("text")
    with pytest.raises(OSError, match="not empty"):
        save_params(tmp_path / "mine", {"x": jnp.zeros(3)})
    assert listing(tmp_path) == ["mine"]
    assert listing(tmp_path / "mine") == ["notes.txt"]


def test_of_two_processes_that_save_the_same_parameters_the_second_is_told(saved, tmp_path, monkeypatch):
    replace = os.replace

    def after_the_other(source, target):
        shutil.copytree(saved, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_the_other)
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        save_params(tmp_path / "base", {"x": jnp.zeros(3)})
    assert_identical(load_params(tmp_path / "base", everything()), everything())
    assert listing(tmp_path) == ["base"]


def test_what_killed_saves_left_is_removed_and_living_ones_are_not_disturbed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = f"{ended.pid}-{platform.node()}", f"{os.getppid()}-{platform.node()}"
    elsewhere = f"{ended.pid}-not-{platform.node()}"
    for name in ("base", "base-averaged"):
        for process in (dead, living, elsewhere):
            (tmp_path / f".{name}.partial-{process}" / "0").mkdir(parents=True)
    save_params(tmp_path / "base", {"x": jnp.zeros(3)})
    kept = [f".base.partial-{process}" for process in (living, elsewhere)]
    others = [f".base-averaged.partial-{process}" for process in (dead, living, elsewhere)]
    assert listing(tmp_path) == sorted([*kept, *others, "base"])


KILLED = """
import os, signal, sys, types
import jax.numpy as jnp
# Its checkpoints alone: the whole package takes seconds to import
sys.modules["gft_jax"] = types.ModuleType("gft_jax")
sys.modules["gft_jax"].__path__ = [sys.argv[1]]
from gft_jax.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[2])
for step in (1, 2):
    checkpoints.save(step, {"x": jnp.arange(2.0**22) * step}, {"step": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_in_the_middle_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLED, *gft_jax.__path__, str(tmp_path)]
    killed = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=120)
    assert killed.returncode == -9
    with Checkpoints(tmp_path) as checkpoints:
        step = checkpoints.latest_step()
        assert step in (1, 2)
        restored, metadata = checkpoints.restore({"x": jax.ShapeDtypeStruct((2**22,), jnp.float32)})
        assert metadata == {"step": step}
        np.testing.assert_array_equal(restored["x"], np.arange(2.0**22, dtype=np.float32) * step)
        checkpoints.save(3, {"x": jnp.zeros(1)})
    assert not [name for name in listing(tmp_path) if "tmp" in name]


REFUSED = [
    ({"x": 3}, {}, r"leaf \['x'\] must be an array .* got int; make it one with jnp.asarray"),
    ({"x": "name"}, {}, r"leaf \['x'\] must be an array .* got str"),
    (np.array(["a"]), {}, "leaf at the root must be an array .* got ndarray of <U1"),
    (
        {"x": jax.ShapeDtypeStruct((), jnp.float32)},
        {},
        r"leaf \['x'\] must be an array .* got ShapeDtypeStruct",
    ),
    ({"x": (), "y": jnp.zeros(0)}, {}, "holds no array"),
    (
        {"x": jnp.zeros(1)},
        {"y": jnp.zeros(1)},
        "metadata must be what JSON can hold: .*not JSON serializable",
    ),
]


@pytest.mark.parametrize(("state", "metadata", "message"), REFUSED)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path, state, metadata, message):
    with Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.save(0, state, metadata)
    assert not (tmp_path / "run").exists()


def test_a_fingerprint_is_the_hash_of_paths_shapes_dtypes_and_bytes():
    tree = {"w": np.array([[1.0, 2.0]], np.float32), "e": (), "k": jax.random.key(5)}
    digest = hashlib.sha256(json.dumps(["['e']", None, "tuple"]).encode())
    digest.update(json.dumps(["['k']", [], "key<fry>"]).encode() + np.array([0, 5], "<u4").tobytes())
    digest.update(json.dumps(["['w']", [1, 2], "float32"]).encode() + np.array([1.0, 2.0], "<f4").tobytes())
    assert fingerprint(tree) == digest.hexdigest()


def test_a_fingerprint_changes_with_anything_and_with_nothing_else():
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    reference = fingerprint({"x": x})
    assert fingerprint({"x": jnp.asarray(x)}) == reference
    assert fingerprint({"x": np.asfortranarray(x)}) == reference
    one_bit = x.copy()
    one_bit.view(np.uint32)[1, 1] ^= 1
    others = [
        {"x": one_bit},
        {"x": x.view(np.int32)},
        {"x": x.reshape(4)},
        {"x": x.T},
        {"y": x},
        {"x": [x]},
        {"x": x, "y": None},
        {"x": x, "y": ()},
        {"x": jnp.asarray(x, jnp.bfloat16)},
        x,
        {"x": -x * 0},
        {"x": x * 0},
        {"x": jax.random.key(0)},
        {"x": jax.random.key_data(jax.random.key(0))},
        {"x": jax.random.key(0, impl="rbg")},
    ]
    assert len({reference, *map(fingerprint, others)}) == 1 + len(others)
    with pytest.raises(ValueError, match=r"leaf \['x'\] must be an array"):
        fingerprint({"x": 1.0})

"""One device and several give the same run. Fake devices need a process of their own (and a larger thread pool)."""

import jax
import numpy as np
import optax
import pytest
from programs import on_fake_devices

import gft_jax as gft
from gft_jax.loading import init_params


@pytest.fixture(scope="module")
def report():
    """What tests/parallel_program.py prints under four fake CPU devices, by name."""
    return on_fake_devices("parallel_program.py")


def test_the_gradient_is_that_of_one_device(report):
    assert float(report["gradient"]) < 1e-5
    assert float(report["sharded_gradient"]) < 1e-5
    assert float(report["mean_of_means"]) > 1e-2  # power: what a mean of local means would give


@pytest.mark.parametrize("name", ["params", "averaged", "chunk"])
def test_twenty_steps_are_those_of_one_device(report, name):
    assert float(report[name]) < 1e-5


def test_losses_and_self_paced_cooling_agree(report):
    assert float(report["losses"]) < 1e-5
    assert float(report["cooling"]) < 1e-5


def test_base_and_state_are_on_every_device_once_and_what_was_fetched_stays(report):
    assert report["copies"] == "True"
    for form in ("single", "sharded", "pmap"):
        assert float(report[f"{form}_kept"]) == 0.0
        assert float(report[f"{form}_moved"]) > 1e-2
    assert report["first"] == "True"  # whatever the order of the mesh


def test_a_batch_that_does_not_divide_is_refused(report):
    assert "7 rows does not divide over 4 devices" in report["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_every_form_takes_the_run_of_one_device(num_devices):
    """Gradients to 1e-5, and 20 steps of clipped Adam in two micro-batches to 1e-4 of the largest entry of a leaf
    (losses to 1e-5): rounding, which Adam amplifies where a gradient is near zero."""
    printed = on_fake_devices("forms_program.py", num_devices=num_devices)
    assert float(printed["clipped"]) > 0.5  # power: every step is clipped
    forms = {name.split(".")[0] for name in printed if "." in name}
    assert forms == {"pmap", "data", "fsdp"} | ({"both"} if num_devices > 2 else set())
    for form in forms:
        assert float(printed[f"{form}.gradient"]) < 1e-5
        assert float(printed[f"{form}.losses"]) < 1e-5
        assert float(printed[f"{form}.state"]) < 1e-4
        assert printed[f"{form}.layout"] == "True"
    # Each device holds its part of the state: all but a few small arrays is split.
    assert float(printed["pmap.share"]) == float(printed["data.share"]) == 1.0
    assert 1 / num_devices <= float(printed["fsdp.share"]) < 1.1 / num_devices
    rows = 2 * num_devices - 1
    assert f"{rows} rows does not divide over {num_devices} devices" in printed["refused"]


@pytest.mark.slow
def test_all_forms_on_one_device_are_jit():
    """They are the same step, so that a program can always use them."""
    module = gft.networks.ResidualMLP(hidden=8, depth=1)
    params = init_params(module, jax.random.key(0), (2,))
    tuner = gft.finetuner(
        gft.objectives.gradual(gft.drifts.from_linen(module)),
        optax.sgd(1.0),
        gft.cooling.constant(temperature=1.0),
    )
    batch = gft.pairing.batches(np.ones((4, 2), np.float32), batch_size=4, seed=0).batch(0)
    batch = batch._replace(x0=np.asarray(batch.x0))  # rows of the caller's own may be numpy's
    results = []
    devices = jax.local_devices()[:1]
    for runner in (
        gft.parallel.single_device(tuner),
        gft.parallel.pmapped(tuner, devices),
        gft.parallel.sharded(tuner, gft.parallel.mesh(devices=devices)),
    ):
        state, _ = runner.step(runner.init(jax.random.key(0), params), runner.place(params), batch)
        results.append(runner.fetch(state))
    for one, *others in zip(*map(jax.tree.leaves, results), strict=True):
        for other in others:
            np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-7)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    devices = jax.local_devices()[:1] * 6  # enough to count
    for options, message in (
        ({"fsdp": 4}, "6 devices do not divide into groups of fsdp=4"),
        ({"data": 2, "fsdp": 2}, "data=2 times fsdp=2 takes 4 devices, and there are 6"),
        ({"data": 0}, "data must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            gft.parallel.mesh(devices=devices, **options)
    tuner = gft.finetuner(gft.objectives.flow_matching(lambda params, t, x, cond=None: x), optax.sgd(1.0))
    with pytest.raises(ValueError, match=r"axes \('data', 'fsdp'\) of type Auto"):
        gft.parallel.sharded(tuner, jax.make_mesh((1, 1), ("data", "model"), devices=devices[:1]))


def test_an_array_is_split_along_its_largest_dimension_that_divides():
    rule, split = gft.parallel.over_fsdp(4, min_size=8), jax.sharding.PartitionSpec
    for shape, expected in (
        ((8, 12), split(None, "fsdp")),
        ((8, 9), split("fsdp")),
        ((8, 8), split("fsdp")),  # the first of equals
        ((3, 3, 64, 128), split(None, None, None, "fsdp")),
        ((7, 9), split()),
        ((4,), split()),  # too small
        ((), split()),
    ):
        assert rule("", shape) == expected
    assert gft.parallel.over_fsdp(1, min_size=1)("", (8, 8)) == split()


@pytest.mark.gpu
def test_an_accelerator_takes_the_step_of_the_cpu():
    module = gft.networks.ResidualMLP(hidden=32, depth=2)
    params = init_params(module, jax.random.key(0), (4,))
    base_params = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.05), params)
    objective = gft.objectives.gradual(gft.drifts.from_linen(module))
    tuner = gft.finetuner(objective, optax.sgd(1.0), gft.cooling.constant(temperature=1.0))
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            batch = gft.pairing.batches(np.ones((16, 4), np.float32), batch_size=16, seed=0).batch(0)
            runner = gft.parallel.single_device(tuner)
            state, _ = runner.step(runner.init(jax.random.key(0), base_params), base_params, batch)
            results.append(jax.device_get(state.params))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

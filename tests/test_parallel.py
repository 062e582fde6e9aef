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
    assert float(report["mean_of_means"]) > 1e-2  # power: what a mean of local means would give


@pytest.mark.parametrize("name", ["params", "averaged", "chunk"])
def test_twenty_steps_are_those_of_one_device(report, name):
    assert float(report[name]) < 1e-5


def test_losses_and_self_paced_cooling_agree(report):
    assert float(report["losses"]) < 1e-5
    assert float(report["cooling"]) < 1e-5


def test_base_and_state_are_on_every_device_once_and_what_was_fetched_stays(report):
    assert report["copies"] == "True"
    assert report["kept"] == "True"


def test_a_batch_that_does_not_divide_is_refused(report):
    assert "7 rows does not divide over 4 devices" in report["refused"]


def test_pmap_over_one_device_is_jit():
    """The mapped form is the same step, so that a program can always use it."""
    module = gft.networks.ResidualMLP(hidden=8, depth=1)
    params = init_params(module, jax.random.key(0), (2,))
    tuner = gft.finetuner(
        gft.objectives.gradual(gft.drifts.from_linen(module)),
        optax.sgd(1.0),
        gft.cooling.constant(temperature=1.0),
    )
    batch = gft.pairing.batches(np.ones((4, 2), np.float32), batch_size=4, seed=0).batch(0)
    results = []
    for runner in (gft.parallel.single_device(tuner), gft.parallel.pmapped(tuner, jax.local_devices()[:1])):
        state, _ = runner.step(runner.init(jax.random.key(0), params), runner.place(params), batch)
        results.append(runner.fetch(state))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


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

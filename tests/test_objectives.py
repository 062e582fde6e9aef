"""What holds for every objective: one table of them all, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import BASE_PARAMS, PARAMS, PATH, affine, batch_of, flat, gradient, mean_loss

import gft_jax as gft
from gft_jax.pairing import row_keys


def mean_entry(x):
    """A log-ratio for events of any shape."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=-1)


def of_two_times(drift):
    """An average velocity that is this drift at s = t."""

    def average(params, t, s, x, cond=None):
        return drift(params, t, x, cond) * (1 + jnp.sin(s - t)).reshape(-1, *[1] * (x.ndim - 1))

    return average


OBJECTIVES = {
    "flow matching": gft.objectives.flow_matching,
    "gradual": gft.objectives.gradual,
    "gradual, not normalised": lambda drift: gft.objectives.gradual(drift, normalized=False),
    "gradual, base on every second row": lambda drift: gft.objectives.gradual(drift, base_every=2),
    "gradual, on the base path": lambda drift: gft.objectives.gradual(
        drift, base_path=gft.objectives.rolled_out(2)
    ),
    "terminal": lambda drift: gft.objectives.terminal(drift, mean_entry),
    "mean flow": lambda drift: gft.objectives.mean_flow(of_two_times(drift), same_time=0.5),
    "gradual mean flow": lambda drift: gft.objectives.gradual_mean_flow(of_two_times(drift), same_time=0.0),
}
every_objective = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def elementwise(params, t, x, cond=None):
    """A drift for events of any shape."""
    return params["scale"] * x + params["shift"] * t.reshape(-1, *[1] * (x.ndim - 1))


STUDENT, BASE = ({"scale": np.array(a), "shift": np.array(b)} for a, b in ((0.5, -1.0), (0.2, 0.3)))


def flat_batch(dtype=np.float32):
    x0, x1 = np.random.default_rng(0).normal([[[0.0]], [[2.0]]], 1.0, (2, 8, 6))
    return gft.Batch(jnp.asarray(x0, dtype), jnp.asarray(x1, dtype), row_keys(1, 0, 8))


@every_objective
def test_events_of_any_rank(make):
    """A drift that acts on each entry has the same loss and gradient, however the entries are arranged."""
    objective, batch = make(elementwise), flat_batch()
    expected, stats = gradient(objective, STUDENT, BASE, batch, 0.5)
    arranged = batch._replace(x0=batch.x0.reshape(8, 3, 2), x1=batch.x1.reshape(8, 3, 2))
    ours, ours_stats = gradient(objective, STUDENT, BASE, arranged, 0.5)
    np.testing.assert_allclose(flat(ours), flat(expected), rtol=1e-5)
    assert stats.keys() == ours_stats.keys()
    scalars = batch._replace(x0=batch.x0[:, 0], x1=batch.x1[:, 0])
    vectors = batch._replace(x0=batch.x0[:, :1], x1=batch.x1[:, :1])
    one, other = (gradient(objective, STUDENT, BASE, some, 0.5)[0] for some in (scalars, vectors))
    np.testing.assert_allclose(flat(one), flat(other), rtol=1e-5)


@every_objective
def test_precision_is_that_of_the_data(make, x64):
    objective = make(elementwise)
    double, _ = mean_loss(objective, STUDENT, BASE, flat_batch(np.float64), 0.5)
    params, base = jax.tree.map(np.float32, (STUDENT, BASE))
    single, stats = mean_loss(objective, params, base, flat_batch(), np.float32(0.5))
    assert double.dtype == jnp.float64
    assert {leaf.dtype for leaf in jax.tree.leaves((single, stats))} == {jnp.dtype(jnp.float32)}


@every_objective
def test_one_program_serves_all_temperatures_and_batches(make):
    traced = []

    def drift(params, t, x, cond=None):
        traced.append(1)
        return affine(params, t, x)

    objective = make(drift)
    losses = [
        float(mean_loss(objective, PARAMS, PARAMS, batch_of(8, seed=seed), np.float32(beta))[0])
        for seed, beta in ((0, 2.0), (1, 0.5), (0, 2.0))
    ]
    once = len(traced)
    mean_loss(objective, PARAMS, PARAMS, batch_of(8, seed=2), np.float32(0.0))
    assert len(traced) == once
    assert losses[0] == losses[2] != losses[1]


@every_objective
def test_a_row_depends_on_its_own_key_and_not_on_its_neighbours(make):
    """A batch in another order has the same terms in that order; under other keys it has others."""
    objective, batch = make(affine), batch_of(8)
    order = np.array([2, 1, 0, 7, 4, 3, 6, 5])  # rows of even number stay at even places: they carry the base

    @jax.jit
    def losses(batch):
        rows = objective.prepare(PARAMS, BASE_PARAMS, (), batch, jnp.asarray(1.0))
        return objective.loss(PARAMS, BASE_PARAMS, rows, jnp.asarray(1.0)).loss

    ours = losses(jax.tree.map(lambda leaf: leaf[order], batch))
    np.testing.assert_allclose(ours, losses(batch)[order], rtol=1e-6)
    assert len(np.unique(ours)) == 8
    others = losses(batch._replace(key=row_keys(2, 0, 8)))
    assert not np.isclose(others, losses(batch)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b._replace(x1=None), "x1=None"),
        (lambda b: b._replace(x1=b.x1[:, :1]), r"\(6, 2\).*\(6, 1\)"),
        (lambda b: jax.tree.map(lambda leaf: leaf[:5], b), "base_every=2.*5 rows"),
        (lambda b: b._replace(weight=jnp.ones((6, 1))), r"weight.*\(6,\).*\(6, 1\)"),
    ],
)
def test_wrong_batches_are_refused(change, message):
    objective = gft.objectives.gradual(affine, base_every=2)
    with pytest.raises(ValueError, match=message):
        gft.mean_loss(objective, PARAMS, PARAMS, change(batch_of(6)), 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gft.objectives.gradual(affine, base_every=0), "base_every.*0"),
        (lambda: gft.objectives.rolled_out(0), "num_steps.*0"),
        (lambda: gft.objectives.time_sampling.uniform(0.5, 0.2), "start=0.5, end=0.2"),
        (lambda: gft.objectives.time_sampling.logit_normal(std=0.0), "std.*0"),
        (
            lambda: gft.objectives.weighting.girsanov(PATH, gft.diffusions.constant(1.0), max_weight=0.0),
            "max_weight",
        ),
        (
            lambda: gft.objectives.weighting.girsanov(
                gft.paths.brownian_bridge(1.0), gft.diffusions.constant(1.0), max_weight=1.0
            ),
            "bridge",
        ),
    ],
)
def test_wrong_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_method_that_needs_a_base_says_so():
    objective = gft.objectives.gradual(affine)
    with pytest.raises(ValueError, match="base_params is None"):
        gft.mean_loss(objective, PARAMS, None, batch_of(4), 1.0)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match=r"temperature must be >= 0, got -0\.5"):
        gft.mean_loss(gft.objectives.gradual(affine), PARAMS, PARAMS, batch_of(4), -0.5)


def test_a_weighting_of_another_shape_is_refused():
    objective = gft.objectives.flow_matching(affine, weighting=lambda t: t[:, None])
    with pytest.raises(ValueError, match=r"weighting.*\(4,\).*\(4, 1\)"):
        gft.mean_loss(objective, PARAMS, None, batch_of(4))


def test_a_drift_of_another_shape_is_named_with_both_shapes():
    objective = gft.objectives.flow_matching(lambda params, t, x, cond=None: x[:, :1])
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4, 2\)"):
        gft.mean_loss(objective, {}, None, batch_of(4))

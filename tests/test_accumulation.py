"""A batch in micro-batches takes the step of the whole batch, whatever its rows weigh, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft
from gft_jax.accumulation import microbatches

RNG = np.random.default_rng(0)
ROWS = 24


def drift(params, t, x, cond=None):
    return jnp.tanh(x @ params["w"]) + t[:, None] * params["b"]


def problem():
    """Rows of very different size and weight, parameters, and those of a base."""
    keys = gft.pairing.row_keys(0, 0, ROWS)
    size = np.geomspace(0.1, 10.0, ROWS)[:, None]
    batch = gft.Batch(RNG.normal(size=(ROWS, 3)), RNG.normal(size=(ROWS, 3)) * size, keys)
    batch = jax.tree.map(jnp.asarray, batch._replace(weight=RNG.uniform(0.1, 3.0, ROWS)))
    base = {"w": jnp.asarray(RNG.normal(size=(3, 3))), "b": jnp.asarray(RNG.normal(size=3))}
    return batch, base


@pytest.mark.parametrize("num_updates", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_micro_batches_are_the_large_batch_to_rounding(num_updates, x64):
    """State, diagnostics, and what self-paced cooling makes of them; the base is seen on every third row."""
    batch, base = problem()
    objective, cooling = gft.objectives.gradual(drift, base_every=3), gft.cooling.self_paced(10, start=0.3)
    results = {}
    for parts in (1, 4):
        tuner = gft.finetuner(
            objective, optax.adam(0.1), cooling, num_updates=num_updates, num_microbatches=parts
        )
        results[parts] = jax.jit(tuner.step)(tuner.init(jax.random.key(0), base), base, batch)
    for one, other in zip(*map(jax.tree.leaves, results.values()), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-14)
    # Power: the mean of the means of the parts is another loss.
    temperature = cooling.temperature(cooling.init(), jnp.int32(0))
    parts = microbatches(batch, 4)
    means = [
        gft.mean_loss(objective, base, base, jax.tree.map(lambda leaf, k=k: leaf[k], parts), temperature)[0]
        for k in range(4)
    ]
    assert abs(np.mean(means) / float(results[1][1].loss) - 1) > 1e-2


def test_each_part_has_successive_rows_of_every_share():
    batch = gft.Batch(jnp.arange(12.0)[:, None], None, gft.pairing.row_keys(0, 0, 12))
    assert microbatches(batch, 2).x0[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    spread = microbatches(batch, 2, num_shares=3)
    assert spread.x0[:, :, 0].tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    rows = np.asarray(spread.x0[1, :, 0], int)
    assert jnp.array_equal(jax.random.key_data(spread.key[1]), jax.random.key_data(batch.key[rows]))


def test_half_precision_sums_are_taken_in_float32():
    """In bfloat16 a gradient of 1 a row would add up to 256 and stay there."""

    def loss(params, base_params, rows, temperature):
        error = params["w"].astype(jnp.float32) * jnp.ones(len(rows.x0))
        return gft.Terms(error, jnp.ones(len(rows.x0)), {})

    tuner = gft.finetuner(gft.Objective(loss), optax.sgd(1.0), averaging=None, num_microbatches=1024)
    batch = gft.Batch(jnp.zeros((1024, 1)), None, gft.pairing.row_keys(0, 0, 1024))
    start = {"w": jnp.zeros((), jnp.bfloat16)}
    state, info = jax.jit(tuner.step)(tuner.init(jax.random.key(0), params=start), None, batch)
    assert float(info.grad_norm) == 1.0
    assert float(state.params["w"]) == -1.0
    assert state.params["w"].dtype == jnp.bfloat16


def test_micro_batches_take_less_memory():
    module = gft.networks.ResidualMLP(hidden=64, depth=3)
    params = gft.loading.init_params(module, jax.random.key(0), (4,))
    objective = gft.objectives.flow_matching(gft.drifts.from_linen(module))
    batch = gft.pairing.batches(np.ones((8, 4), np.float32), batch_size=1024, seed=0).batch(0)
    memory = []
    for parts in (1, 8):
        tuner = gft.finetuner(objective, optax.sgd(0.1), averaging=None, num_microbatches=parts)
        state = jax.eval_shape(tuner.init, jax.random.key(0), params=params)
        compiled = jax.jit(tuner.step).lower(state, None, batch).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert memory[1] < memory[0] / 3


def test_what_cannot_be_divided_is_refused():
    batch, base = problem()
    with pytest.raises(ValueError, match="num_microbatches must be >= 1, got 0"):
        gft.finetuner(gft.objectives.gradual(drift), optax.sgd(0.1), num_microbatches=0)
    tuner = gft.finetuner(gft.objectives.gradual(drift), optax.sgd(0.1), num_microbatches=5)
    with pytest.raises(ValueError, match="24 rows does not divide into 5 micro-batches: use a multiple of 5"):
        tuner.step(tuner.init(jax.random.key(0), base), base, batch)
    with pytest.raises(
        ValueError, match="over 4 devices, and on each into 4 micro-batches: use a multiple of 16"
    ):
        microbatches(batch, 4, num_shares=4)

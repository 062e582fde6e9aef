"""Parameters that are frozen by patterns: they stay, and the optimiser keeps nothing for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft
from gft_jax.networks import freeze, freeze_all_but
from gft_jax.pairing import row_keys

PARAMS = {
    "first": {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.ones(3)},
    "last": {"kernel": jnp.full((3, 2), -0.5), "bias": jnp.ones(2)},
}


def drift(params, t, x, cond=None):
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["last"]["kernel"] + params["last"]["bias"]


def test_frozen_parameters_stay_and_the_others_move_as_if_they_were_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 2)), jnp.float32)
    batch = gft.Batch(x[0], x[1], row_keys(0, 0, 6))
    objective = gft.objectives.flow_matching(drift)
    clipped = optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.1))
    tuner = gft.finetuner(objective, freeze(clipped, ["first/*"]))
    state = tuner.init(jax.random.key(0), PARAMS)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * (6 + 2) + 1
    after, _ = jax.jit(tuner.step)(state, PARAMS, batch)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(after.params["first"][name], PARAMS["first"][name])

    gradient = jax.grad(gft.mean_loss, argnums=1, has_aux=True)(objective, PARAMS, None, batch)[0]["last"]
    updates, _ = clipped.update(gradient, clipped.init(PARAMS["last"]), PARAMS["last"])
    alone = optax.apply_updates(PARAMS["last"], updates)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(after.params["last"][name], alone[name], rtol=1e-6)
        assert np.abs(alone[name] - PARAMS["last"][name]).min() > 1e-3

    same = gft.finetuner(objective, freeze_all_but(clipped, ["last/bias", "last/k*"]))
    again, _ = jax.jit(same.step)(same.init(jax.random.key(0), PARAMS), PARAMS, batch)
    for ours, theirs in zip(jax.tree.leaves(again.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_patterns_that_match_nothing_or_all_are_refused():
    optimizer = optax.sgd(0.1)
    names = "first/bias, first/kernel, last/bias, last/kernel"
    with pytest.raises(ValueError, match=f"'middle/\\*' matches nothing; there are {names}"):
        freeze(optimizer, ["first/*", "middle/*"]).init(PARAMS)
    with pytest.raises(ValueError, match="'bias' matches nothing"):
        freeze_all_but(optimizer, ["bias"]).init(PARAMS)
    for nothing_left in (freeze(optimizer, ["*"]), freeze_all_but(optimizer, [])):
        with pytest.raises(ValueError, match="every parameter is frozen: leave some to train"):
            nothing_left.init(PARAMS)
    with pytest.raises(ValueError, match=r"patterns must be a sequence.*got 'first/\*'"):
        freeze(optimizer, "first/*")
    with pytest.raises(ValueError, match="two leaves of this pytree have one name"):
        freeze(optimizer, ["a/b"]).init({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})

"""The embedding of conditions: labels, vectors, and several of both, with their null values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax import pairing
from gft_jax.drifts import GuidanceParams, from_linen, guide
from gft_jax.networks import ConditionEmbedding, ResidualMLP, SiT, UNet, null_condition

SIZES = {"num_classes": {"digit": 3, "domain": 2}, "cond_features": {"text": 4}}
RNG = np.random.default_rng(0)
COND = {
    "digit": np.array([0, 2, 1, 0]),
    "domain": np.array([1, 0, 1, 0]),
    "text": RNG.normal(size=(4, 4)).astype(np.float32),
}


def with_random_params(module, *args):
    shapes = jax.eval_shape(lambda key: module.init(key, *args), jax.random.key(0))
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def test_entries_are_embedded_and_added_up_and_left_out_ones_are_null():
    module = ConditionEmbedding(5, **SIZES, learned_null=True)
    variables = with_random_params(module, COND, 4)
    params = variables["params"]
    tables = [params["labels_digit"]["embedding"], params["labels_domain"]["embedding"]]
    assert [table.shape for table in tables] == [(4, 5), (3, 5)]
    text = params["vectors_text"]
    by_hand = tables[0][COND["digit"]] + tables[1][COND["domain"]]
    projected = COND["text"] @ text["kernel"] + text["bias"]
    apply = jax.jit(module.apply, static_argnums=2)
    np.testing.assert_allclose(apply(variables, COND, 4), by_hand + projected, rtol=1e-5)

    # A row of NaN is null and the others stay; one NaN among numbers is a mistake, and shows.
    rows = np.where(np.arange(4)[:, None] == 1, np.nan, COND["text"])
    expected = by_hand + np.where(np.arange(4)[:, None] == 1, text["null"], projected)
    np.testing.assert_allclose(apply(variables, COND | {"text": rows}, 4), expected, rtol=1e-5)
    rows = COND["text"].copy()
    rows[1, 0] = np.nan
    found = apply(variables, COND | {"text": rows}, 4)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), [False, True, False, False])

    nothing = np.broadcast_to(tables[0][3] + tables[1][2] + text["null"], (4, 5))
    np.testing.assert_allclose(apply(variables, None, 4), nothing, rtol=1e-5)
    null = jax.tree.map(lambda row: np.broadcast_to(row, (4, *row.shape)), null_condition(**SIZES))
    np.testing.assert_allclose(apply(variables, null, 4), nothing, rtol=1e-5)
    without_text = {name: COND[name] for name in ("digit", "domain")}
    np.testing.assert_allclose(apply(variables, without_text, 4), by_hand + text["null"], rtol=1e-5)


def test_the_gradient_of_null_rows_reaches_their_null_alone():
    module = ConditionEmbedding(3, cond_features=2, learned_null=True)
    rows = np.array([[np.nan, np.nan], [1.0, 2.0]], np.float32)
    variables = with_random_params(module, rows, 2)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(module.apply(params, rows, 2))))(variables)["params"]
    np.testing.assert_array_equal(gradient["null"], np.ones(3))
    np.testing.assert_array_equal(gradient["bias"], np.ones(3))
    np.testing.assert_array_equal(gradient["kernel"], np.outer([1, 2], np.ones(3)))


NETWORKS = {
    "mlp": lambda **sizes: ResidualMLP(hidden=4, depth=1, time_features=4, **sizes),
    "sit": lambda **sizes: SiT(8, 1, 2, 2, **sizes),
    "unet": lambda **sizes: UNet(4, (1,), 1, (), 1, norm_groups=2, **sizes),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_labels_vectors_and_both(network):
    t, x = jnp.asarray([0.2, 0.7]), jnp.asarray(RNG.normal(size=(2, 4, 4, 1)), jnp.float32)
    labels, vectors = np.array([0, 2]), RNG.normal(size=(2, 3)).astype(np.float32)
    for sizes, cond in (
        ({"num_classes": 3}, labels),
        ({"cond_features": 3, "learned_null": True}, vectors),
        ({"num_classes": 3, "cond_features": 3}, {"label": labels, "vector": vectors}),
    ):
        module = NETWORKS[network](**sizes)
        variables = with_random_params(module, t, x, cond)
        velocity = jax.jit(module.apply)
        of_both = velocity(variables, t, x, cond)
        of_first = velocity(variables, t, x, jax.tree.map(lambda leaf: leaf[[0, 0]], cond))
        np.testing.assert_allclose(of_first[0], of_both[0], rtol=1e-5, atol=1e-5)
        assert np.abs(of_first[1] - of_both[1]).max() > 1e-3
        if len(sizes) == 1 or "learned_null" in sizes:
            assert np.abs(velocity(variables, t, x) - of_both).max() > 1e-3
    with pytest.raises(ValueError, match="cond was given to an unconditional network"):
        jax.eval_shape(NETWORKS[network]().init, jax.random.key(0), t, x, labels)


def test_guidance_and_dropout_of_a_network_with_several_conditions():
    """A network of labels and vectors: dropped rows, and guidance at scale zero, are those without condition."""
    module = ResidualMLP(hidden=8, depth=1, time_features=4, **SIZES, learned_null=True)
    x1, t = RNG.normal(size=(4, 3)).astype(np.float32), jnp.full(4, 0.5)
    drift, params = from_linen(module), with_random_params(module, t, jnp.asarray(x1), COND)["params"]
    null = null_condition(**SIZES)
    stream = pairing.batches(
        x1,
        batch_size=64,
        seed=0,
        cond=COND,
        num_classes=SIZES["num_classes"],
        cond_dropout=0.5,
        null_cond=null,
    )
    cond = stream.batch(0).cond
    dropped = np.isnan(cond["text"]).all(axis=1)
    assert 0.2 < dropped.mean() < 0.8
    np.testing.assert_array_equal(dropped, cond["digit"] == 3)  # a row's entries are dropped together
    np.testing.assert_array_equal(dropped, cond["domain"] == 2)

    x, t = jnp.asarray(RNG.normal(size=(64, 3)), jnp.float32), jnp.full(64, 0.5)

    @jax.jit
    def three(params, cond):
        guided = guide(drift, null)(GuidanceParams(params, 0.0), t, x, cond)
        return drift(params, t, x, cond), drift(params, t, x), guided

    conditional, unconditional, guided = three(params, cond)
    np.testing.assert_allclose(guided, unconditional, rtol=1e-5, atol=1e-5)
    same = np.isclose(conditional, unconditional, rtol=1e-4, atol=1e-5).all(axis=1)
    np.testing.assert_array_equal(same, dropped)


def test_bad_conditions_are_named():
    fields = [
        ({}, "needs num_classes"),
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"cond_features": {"text": 0}}, r"cond_features\['text'\] must be >= 1, got 0"),
        ({"num_classes": {"a": 2}, "cond_features": {"a": 2}}, r"\['a'\] are entries of num_classes and of"),
        ({"num_classes": 2, "learned_null": True}, "learned_null is of vectors"),
    ]
    for sizes, message in fields:
        with pytest.raises(ValueError, match=message):
            ConditionEmbedding(3, **sizes)
    with pytest.raises(ValueError, match="features must be >= 1, got 0"):
        ConditionEmbedding(0, num_classes=1)
    module = ConditionEmbedding(5, **SIZES)
    rows = [
        (
            COND | {"colour": COND["digit"]},
            r"among \['digit', 'domain', 'text'\]; got the entries \['colour'",
        ),
        (COND["digit"], "must be a mapping"),
        (None, r"the text of cond must be floats of shape \(4, 4\); got None.*learned_null"),
        (COND | {"text": COND["text"][:2]}, r"the text of cond.*\(4, 4\); got float32 of shape \(2, 4\)"),
        (COND | {"digit": COND["text"]}, r"the digit of cond must be integer labels"),
    ]
    for cond, message in rows:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda key, cond: module.init(key, cond, 4), jax.random.key(0), cond)

    x1, classes = np.zeros((4, 3), np.float32), {"digit": 2}
    with pytest.raises(ValueError, match=r"1 of 4 labels cond\['digit'\] are out of range: rows \[1\] hold"):
        pairing.batches(x1, batch_size=4, seed=0, cond=COND, num_classes=classes)
    with pytest.raises(ValueError, match=r"names the entries \['colour'\], and cond has \['digit'"):
        pairing.batches(x1, batch_size=4, seed=0, cond=COND, num_classes={"colour": 2})
    null = null_condition(**SIZES) | {"digit": 1}
    with pytest.raises(ValueError, match=r"null_cond\['digit'\] is 1, one of the 3 classes"):
        pairing.batches(
            x1,
            batch_size=4,
            seed=0,
            cond=COND,
            num_classes={"digit": 3},
            cond_dropout=0.1,
            null_cond=null,
        )

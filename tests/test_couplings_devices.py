"""Plans over devices: one over all rows is that of a single device, one for each share that of the share alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ends import two_ends
from programs import NUM_DEVICES, on_fake_devices

from gft_jax.couplings import apply, exact, independent, over_axis, per_shard, respecting_labels

KEY = jax.random.key(7)
AXIS = "devices"
QUICK = ("independent", "exact", "training")
SLOW = ("sinkhorn", "labels", "one-to-one", "unbalanced")
every_coupling = pytest.mark.parametrize(
    "name", [*QUICK[:-1], *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)


@pytest.fixture(scope="module")
def quick():
    """What tests/coupling_devices_program.py prints, by ``coupling:check``."""
    return on_fake_devices("coupling_devices_program.py", *QUICK)


@pytest.fixture(scope="module")
def slow():
    return on_fake_devices("coupling_devices_program.py", *SLOW)


def checks(request, name):
    found = request.getfixturevalue("quick" if name in QUICK else "slow")
    by_name = [(*key.split(":"), float(value)) for key, value in found.items()]
    return {check: value for of, check, value in by_name if of == name}


@every_coupling
def test_a_global_plan_is_that_of_a_single_device(request, name):
    found = checks(request, name)
    assert found["sharded"] < 1e-5
    assert found["pmapped"] < 1e-5
    if name in ("exact", "one-to-one", "unbalanced"):  # pmap is the same underneath
        assert found["shard_mapped"] < 1e-5
    assert found["abroad"] > 0.3  # power: most partners come from other devices


@every_coupling
def test_local_plans_are_those_of_the_shares_and_no_row_travels(request, name):
    found = checks(request, name)
    assert found["local_sharded"] < 1e-5
    assert found["local_pmapped"] == 0
    assert found["local_abroad"] == 0
    # Single numbers alone; the matrix of costs only on its way to the host.
    assert found["local_exchange"] == (8 * 8 * NUM_DEVICES if name in ("exact", "labels") else 1)
    if name != "independent":
        assert found["local_cost"] > 1.01 * found["cost"]


def test_training_on_many_devices_sees_the_pairs_of_one(request):
    found = checks(request, "training")
    assert found["exact"] < 1e-5
    assert found["local"] < 1e-5
    assert found["apart"] > 1e-3  # power: other pairs, another gradient
    assert found["own_pairs"] == 0
    assert found["inside"] == 0


@jax.jit
def by_weight(key, x0, x1, cond=None, source_cond=None):
    """Chooses both ends: the rows of x1 turned by one, each weighing as it is large; its entropy tells the key."""
    rows = len(x0)
    weight = jnp.abs(x1[:, 0])
    chosen = jnp.roll(jnp.arange(rows, dtype=jnp.int32), 1)
    pairing = independent()(key, x0, x1)._replace(target_index=chosen, weight=weight / weight.mean())
    return pairing._replace(entropy=jax.random.uniform(key))


def split(tree):
    return jax.tree.map(lambda leaf: leaf.reshape(4, 3, *leaf.shape[1:]), tree)


def on_axis(coupling, keys, *ends):
    """As on four devices: an axis of vmap is one for collectives too."""
    return jax.vmap(over_axis(coupling, AXIS), axis_name=AXIS)(keys, *split(ends))


def test_weights_conditions_and_chosen_x1_of_a_global_plan():
    x0, x1 = (jnp.asarray(x) for x in two_ends(event=(2,)))
    cond = {"key": jax.random.split(KEY, 12), "none": None, "flag": jnp.arange(12) % 3 == 0}
    keys = jax.random.split(KEY, 4)
    pairing, rows = jax.jit(lambda *given: on_axis(by_weight, keys, *given))(x0, x1, cond, (x1,))
    whole = by_weight(keys[0], x0, x1)  # the key of the first device
    expected = *whole[:3], *(jnp.broadcast_to(scalar, 4) for scalar in whole[3:])
    assert pairing.converged.dtype == bool
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours.reshape(-1), theirs), tuple(pairing), expected
    )
    assert np.ptp(pairing.weight.mean(axis=1)) > 0.1  # mean 1 over all rows, not on each device

    def plain(leaf):
        data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return np.asarray(data).reshape(12, -1)

    for ours, theirs in zip(*map(jax.tree.leaves, (rows, apply(whole, x0, x1, cond, (x1,)))), strict=True):
        np.testing.assert_array_equal(plain(ours), plain(theirs))


def test_gradients_return_to_the_device_a_row_comes_from():
    x0, x1 = (jnp.asarray(x) for x in two_ends(event=(2,)))

    def loss(x0):
        pairing, rows = on_axis(exact(), jax.random.split(KEY, 4), x0, x1)
        return jnp.sum(rows[0].reshape(12, 2) ** 2 * jnp.arange(12)[:, None]) + pairing.cost.sum()

    source = exact()(KEY, x0, x1).source_index
    expected = np.zeros((12, 2))
    expected[source] = 2 * np.asarray(x0)[source] * np.arange(12)[:, None]
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x0), expected, rtol=1e-5)


def test_per_shard_is_the_block_diagonal_plan_of_the_shares():
    x0, x1 = (jnp.asarray(x) for x in two_ends(event=(2,)))
    local = jax.jit(per_shard(by_weight, 4))
    pairing = local(KEY, x0, x1)
    alone = [
        by_weight(jax.random.fold_in(KEY, k), *(x[3 * k : 3 * k + 3] for x in (x0, x1))) for k in range(4)
    ]
    for field in ("source_index", "target_index", "weight"):
        shift = 0 if field == "weight" else 3
        parts = [np.asarray(getattr(share, field)) + shift * k for k, share in enumerate(alone)]
        np.testing.assert_allclose(getattr(pairing, field), np.concatenate(parts), rtol=1e-6)
    for field in ("cost", "entropy"):
        np.testing.assert_allclose(
            getattr(pairing, field), np.mean([getattr(a, field) for a in alone]), rtol=1e-6
        )
    assert pairing.converged
    assert not local(KEY, x0.at[7, 0].set(jnp.nan), x1).converged
    assert (
        per_shard(exact(), 1)(KEY, x0, x1).source_index.tolist() == exact()(KEY, x0, x1).source_index.tolist()
    )


def test_marginal_error_of_local_plans_is_that_of_their_block_diagonal_plan():
    """Of two plans of two rows each, whose marginals are off by 2 b, against the whole matrix of four rows."""
    blocks = [np.array([[0.3, 0.2], [0.2, 0.3 + b]]) for b in (0.1, 0.3)]
    whole = np.zeros((4, 4))
    for k, block in enumerate(blocks):
        whole[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = block / 2

    def error(plan):
        return sum(np.abs(plan.sum(axis) - 1 / len(plan)).sum() for axis in (0, 1))

    def planned(key, x0, x1, cond=None, source_cond=None):
        return independent()(key, x0, x1)._replace(marginal_error=cond[0])

    x = jnp.zeros(4)
    errors = jnp.asarray([error(block) for block in blocks]).repeat(2)
    np.testing.assert_allclose(
        per_shard(planned, 2)(KEY, x, x, errors).marginal_error, error(whole), rtol=1e-6
    )


def test_bad_input_is_named():
    x0, x1 = two_ends(event=(2,))
    with pytest.raises(ValueError, match="num_shards must be an integer >= 1, got 0"):
        per_shard(exact(), 0)
    with pytest.raises(ValueError, match="12 rows do not divide over 5 shares: use a multiple of 5"):
        per_shard(exact(), 5)(KEY, x0, x1)
    with pytest.raises(ValueError, match=r"cond\['a'\] must have one row for each of the 12 samples"):
        per_shard(exact(), 4)(KEY, x0, x1, {"a": np.zeros(11)})
    with pytest.raises(ValueError, match=r"x0 \(12, 2\) and x1 \(11, 2\)"):
        per_shard(exact(), 4)(KEY, x0, x1[:11])
    with pytest.raises(ValueError, match="must take a penalty"):
        respecting_labels(per_shard(exact(), 4))
    with pytest.raises(ValueError, match=r"source_cond must have one row for each of the 3 samples"):
        jax.vmap(lambda a, b: over_axis(exact(), AXIS)(KEY, a, b, None, x0), axis_name=AXIS)(*split((x0, x1)))
    with pytest.raises(NameError, match=AXIS):
        over_axis(exact(), AXIS)(KEY, x0, x1)
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec(AXIS)
    checked = jax.shard_map(
        lambda a, b: over_axis(exact(), AXIS)(KEY, a, b)[1], mesh=mesh, in_specs=rows, out_specs=rows
    )
    with pytest.raises(TypeError) as error:
        checked(x0, x1)
    assert "check_vma=False" in error.value.__notes__[0]

"""Half precision inside the drift alone: what is trained, summed and integrated stays in float32; rematerialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft

HALF, SINGLE = jnp.dtype("bfloat16"), jnp.dtype("float32")
MODULE = gft.networks.ResidualMLP(hidden=32, depth=2)
DRIFT = gft.drifts.from_linen(MODULE)
ROUNDED = gft.drifts.in_precision(DRIFT)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 3)), jnp.float32)
T = jnp.linspace(0.0, 1.0, 16)


@pytest.fixture(scope="module")
def params():
    fresh = gft.loading.init_params(MODULE, jax.random.key(0), (3,))
    return jax.tree.map(
        lambda leaf: leaf + np.float32(0.1) * RNG.normal(size=leaf.shape).astype(np.float32), fresh
    )


def relative(one, other):
    """Largest difference over largest entry, over all leaves."""
    one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return np.abs(one - other).max() / np.abs(other).max()


def dtypes(tree):
    return {jnp.dtype(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def products(drift, *arguments):
    """Dtypes of all operands of matrix products in the program of a drift."""
    jaxpr = jax.make_jaxpr(drift)(*arguments).jaxpr
    found, pending = set(), [jaxpr]
    while pending:
        for equation in pending.pop().eqns:
            inner = jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda each: hasattr(each, "jaxpr")
            )
            pending += [each.jaxpr for each in inner if hasattr(each, "jaxpr")]
            if equation.primitive.name == "dot_general":
                found |= {each.aval.dtype for each in equation.invars}
    return found


def test_velocity_and_gradient_are_near_those_of_float32(params):
    """Within 2 and 4 percent of the largest entry: some of the 2^-9 = 0.2 percent of each rounding."""

    def loss(drift, params):
        velocity = drift(params, T, X)
        return jnp.mean(velocity**2), velocity

    (ours, theirs) = (
        jax.jit(jax.value_and_grad(lambda params, drift=drift: loss(drift, params), has_aux=True))(params)
        for drift in (ROUNDED, DRIFT)
    )
    assert dtypes(ours) == {SINGLE}
    assert (
        1e-4 < relative(ours[0][1], theirs[0][1]) < 0.02
    )  # above rounding of float32: it is computed otherwise
    assert relative(ours[1], theirs[1]) < 0.04


def test_all_products_are_in_half_precision(params):
    assert products(ROUNDED, params, T, X) == {HALF}
    assert products(DRIFT, params, T, X) == {SINGLE}
    # Power: where the network lets float32 features of t meet x, float32 is seen.
    mixed = gft.drifts.in_precision(lambda params, t, x, cond=None: (x + t[:, None]) @ params)
    assert SINGLE in products(mixed, np.eye(3, dtype=np.float32), T, X)


def test_conditions_are_cast_and_labels_are_not():
    seen = []

    def drift(params, t, x, cond=None):
        seen.append((t.dtype, x.dtype, jax.tree.map(lambda leaf: leaf.dtype, cond)))
        return x

    cond = {"label": jnp.arange(16), "vector": X}
    velocity = gft.drifts.in_precision(drift)((), T, X, cond)
    assert seen == [(SINGLE, HALF, {"label": jnp.dtype("int32"), "vector": HALF})]
    assert velocity.dtype == SINGLE
    assert gft.drifts.in_precision(drift)((), T, X.astype(HALF)).dtype == SINGLE
    with pytest.raises(ValueError, match=r"floating-point numbers, such as jnp\.bfloat16, got"):
        gft.drifts.in_precision(drift, jnp.int8)


def test_a_base_in_half_precision_is_trained_in_float32(params):
    """The trained copy starts at the base, bit for bit, and then moves by steps that bfloat16 would lose."""
    base = gft.drifts.cast(params, HALF)
    tuner = gft.finetuner(
        gft.objectives.gradual(ROUNDED), optax.adam(1e-5), gft.cooling.constant(temperature=3.0)
    )
    start = tuner.init(jax.random.key(0), base)
    batch = gft.pairing.batches(X, batch_size=16, seed=0).batch(0)
    state, info = jax.jit(tuner.step)(start, base, batch)
    assert dtypes((start.params, start.averaged_params, state.params, state.averaged_params)) == {SINGLE}
    assert dtypes(optax.tree.get(state.opt_state, "mu")) == dtypes(info._replace(is_finite=())) == {SINGLE}
    assert float(info.stats["displacement_squared"]) == 0.0
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state.params, start.params)
    assert min(jax.tree.leaves(moved)) > 0
    lost = jax.tree.map(lambda new, old: jnp.array_equal(new, old), gft.drifts.cast(state.params, HALF), base)
    assert any(jax.tree.leaves(lost))  # power


def test_parameters_that_are_given_keep_their_dtype(params):
    half = gft.drifts.cast(params, HALF)
    tuner = gft.finetuner(gft.objectives.flow_matching(DRIFT), optax.sgd(0.1))
    assert dtypes(tuner.init(jax.random.key(0), params=half).params) == {HALF}


def test_the_adjoint_is_float32_under_a_half_precision_drift_and_base(params):
    """Within 5 percent of float32; the sum over the steps has values that bfloat16 has not."""
    reward, base = gft.rewards.quadratic(np.ones(3, np.float32), 2.0), gft.drifts.cast(params, HALF)
    batch = gft.Batch(X, None, gft.pairing.row_keys(0, 0, 16))
    controls = []
    for drift, of_base in ((ROUNDED, base), (DRIFT, params)):
        method = gft.objectives.adjoint_matching(drift, reward, cost_weight=0.5, num_steps=10, unroll=1)
        prepare = jax.jit(method.prepare)
        rows = prepare(params, of_base, method.init(params, of_base), batch, jnp.float32(0.0))
        controls.append(rows.control)
        assert {rows.control.dtype, rows.base_velocity.dtype, rows.x.dtype} == {SINGLE}
    assert 1e-4 < relative(*controls) < 0.05
    assert np.any(controls[0] != controls[0].astype(HALF).astype(SINGLE))


@pytest.mark.slow
def test_rematerialised_paths_have_the_same_gradient_in_less_memory():
    """Through eight steps of a deep network."""
    module = gft.networks.ResidualMLP(hidden=16, depth=5)
    drift = gft.drifts.from_linen(module)
    fresh = gft.loading.init_params(module, jax.random.key(0), (3,))
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.01), fresh)

    def end(drift):
        def loss(params):
            def step(x, t):
                return x + drift(params, jnp.broadcast_to(t, 256), x) / 8, None

            return jnp.mean(jax.lax.scan(step, jnp.ones((256, 3)), jnp.arange(8) / 8)[0] ** 2)

        return loss

    memory, gradients = [], []
    for each in (drift, gft.drifts.rematerialised(drift)):
        compiled = jax.jit(jax.grad(end(each))).lower(params).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        gradients.append(compiled(params))
    assert memory[1] < memory[0] / 4
    assert relative(gradients[1], gradients[0]) < 1e-6

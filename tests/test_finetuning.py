"""The one training step: it composes, it serves methods it has never heard of, and it guards the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft
from gft_jax.loading import init_params
from gft_jax.types import Objective, Terms

MODULE = gft.networks.ResidualMLP(hidden=16, depth=1)
DRIFT = gft.drifts.from_linen(MODULE)
GRADUAL = gft.objectives.gradual(DRIFT)
COOLING = gft.cooling.linear(target_weight=(0.2, 1.0), num_steps=4)
DATA = np.random.default_rng(0).normal(2.0, 0.5, (40, 3)).astype(np.float32)
BATCHES = gft.pairing.batches(DATA, batch_size=8, seed=3)

gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)


@pytest.fixture(scope="module")
def base_params():
    params = init_params(MODULE, jax.random.key(0), (3,))
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), params)


@pytest.fixture(scope="module")
def tuner():
    return gft.finetuner(GRADUAL, optax.adam(1e-2), COOLING, averaging=0.5)


@pytest.fixture(scope="module")
def jitted(tuner):
    return jax.jit(tuner.step)


def assert_trees_close(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerance)


def assert_trees_equal(one, other):
    assert_trees_close(one, other, rtol=0, atol=0)


def run(step, state, base_params, steps):
    infos = []
    for k in steps:
        state, info = step(state, base_params, BATCHES.batch(k))
        infos.append(info)
    return state, infos


def test_equals_an_optax_loop_written_by_hand(tuner, jitted, base_params):
    """The same objective in a loop of one's own, with the gradient of the mean loss."""
    optimizer = optax.adam(1e-2)

    @jax.jit
    def by_hand(params, opt_state, average, k, batch):
        temperature = COOLING.temperature((), k)
        grads, _ = gradient(GRADUAL, params, base_params, batch, temperature)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        keep = jnp.minimum(0.5, (1 + k) / (10 + k))
        return (
            params,
            opt_state,
            jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, average, params),
        )

    params, opt_state, average = base_params, jax.jit(optimizer.init)(base_params), base_params
    for k in range(6):
        params, opt_state, average = by_hand(params, opt_state, average, k, BATCHES.batch(k))
    state, infos = run(jitted, tuner.init(jax.random.key(0), base_params), base_params, range(6))
    assert_trees_close(state.params, params, rtol=2e-5, atol=1e-6)
    assert_trees_close(state.averaged_params, average, rtol=2e-5, atol=1e-6)
    assert [float(info.temperature) for info in infos[4:]] == [0.0, 0.0]
    assert np.isclose(infos[0].temperature, 4.0)
    assert int(state.step) == 6


def test_many_steps_in_one_scan_are_the_single_steps(tuner, jitted, base_params):
    state = tuner.init(jax.random.key(0), base_params)
    one, infos = run(jitted, state, base_params, range(5))
    many, stacked = jax.jit(tuner.step_many)(state, base_params, BATCHES.many(0, 5))
    assert_trees_close(many, one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stacked.loss, [info.loss for info in infos], rtol=1e-5)


def test_maps_over_seeds(tuner, jitted, base_params):
    """vmap over states and batches: every seed gets what it would get alone."""
    streams = [gft.pairing.batches(DATA, batch_size=8, seed=seed) for seed in (0, 1)]
    batches = [stream.batch(0) for stream in streams]
    stack = jax.jit(lambda one, other: jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other))
    states = [tuner.init(jax.random.key(seed), base_params) for seed in (0, 1)]
    mapped = jax.jit(jax.vmap(tuner.step, in_axes=(0, None, 0)))
    together, _ = mapped(stack(*states), base_params, stack(*batches))
    alone = [jitted(state, base_params, batch)[0] for state, batch in zip(states, batches, strict=True)]
    assert_trees_close(together.params, stack(*alone).params, rtol=1e-5, atol=1e-6)
    assert any(not np.allclose(leaf[0], leaf[1]) for leaf in jax.tree.leaves(together.opt_state))


def test_works_inside_a_jitted_function_of_the_user(tuner, jitted, base_params):
    @jax.jit
    def two_steps(state, base_params, first, second):
        state, _ = tuner.step(state, base_params, first)
        return tuner.step(state, base_params, second)[0]

    state = tuner.init(jax.random.key(0), base_params)
    ours = two_steps(state, base_params, BATCHES.batch(0), BATCHES.batch(1))
    theirs, _ = run(jitted, state, base_params, range(2))
    assert_trees_close(ours.params, theirs.params, rtol=1e-5, atol=1e-6)


def test_gradient_of_the_mean_loss_and_through_a_step(x64):
    """Against finite differences: in the parameters, and in the learning rate of a step."""
    batch = gft.pairing.batches(DATA.astype(np.float64), batch_size=8, seed=3).batch(0)
    params = init_params(MODULE, jax.random.key(0), (3,))
    vector, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(float), params))
    vector += 0.02 * jax.random.normal(jax.random.key(2), vector.shape)
    base_params = unravel(vector)
    direction = jax.random.normal(jax.random.key(1), vector.shape)

    # The rows are held fixed under differentiation (prepare is not differentiated), as they are here.
    @jax.jit
    def along(s):
        return gft.mean_loss(GRADUAL, unravel(vector + 0.01 + s * direction), base_params, batch, 1.0)[0]

    def after_a_step(rate):
        tuner = gft.finetuner(GRADUAL, optax.sgd(rate), COOLING)
        state, _ = tuner.step(tuner.init(jax.random.key(0), base_params), base_params, batch)
        return gft.mean_loss(GRADUAL, state.params, base_params, batch, 1.0)[0]

    for function, at in ((along, 0.0), (jax.jit(after_a_step), 1e-3)):
        h = 1e-6
        numeric = (function(at + h) - function(at - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(function)(at), numeric, rtol=1e-6)


def test_serves_an_on_policy_method_with_a_state_of_its_own(base_params):
    """prepare rolls out the current drift; the target moves the samples to 1; a quantity is averaged as state."""

    def prepare(params, base_params, objective_state, batch, temperature):
        x = batch.x0
        for k in range(2):
            x = x + 0.5 * DRIFT(params, jnp.full(x.shape[:1], k / 2), x)
        return {"x": x, "reference": objective_state["reach"]}

    def loss(params, base_params, rows, temperature):
        t = jnp.full(rows["x"].shape[:1], 0.5)
        error = jnp.sum((DRIFT(params, t, rows["x"]) - (1.0 - rows["x"])) ** 2, -1)
        return Terms(error, jnp.ones_like(error), {"reach": jnp.mean(rows["x"], -1)})

    def update(objective_state, stats, params):
        return {"reach": 0.9 * objective_state["reach"] + 0.1 * stats["reach"]}

    objective = Objective(loss, prepare, lambda params, base: {"reach": jnp.zeros(())}, update)
    tuner = gft.finetuner(objective, optax.adam(1e-2))
    step = jax.jit(tuner.step)
    state = tuner.init(jax.random.key(0), base_params)
    batches = [BATCHES.batch(k)._replace(x1=None) for k in range(60)]
    losses, reach, rollout = [], jnp.zeros(()), jax.jit(prepare)
    for batch in batches:
        rolled = rollout(state.params, None, {"reach": reach}, batch, 0.0)["x"]
        reach = 0.9 * reach + 0.1 * jnp.mean(rolled)
        state, info = step(state, None, batch)
        losses.append(float(info.loss))
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])
    np.testing.assert_allclose(state.objective_state["reach"], reach, rtol=1e-4)


def test_serves_an_adapter_it_does_not_know(base_params):
    """Only a shift of the last bias is trained; the drift sees base plus shift, the optimiser the shift alone."""

    def apply(params, base_params):
        last = base_params["last"]
        return {**base_params, "last": {**last, "bias": last["bias"] + params["shift"]}}

    adapter = gft.Adapter(lambda key, base_params: {"shift": jnp.zeros(3)}, apply)
    tuner = gft.finetuner(GRADUAL, optax.sgd(0.1), COOLING, adapter=adapter)
    state = tuner.init(jax.random.key(0), base_params)
    batch = BATCHES.batch(0)
    after, info = jax.jit(tuner.step)(state, base_params, batch)
    whole, _ = gradient(GRADUAL, base_params, base_params, batch, 4.0)
    np.testing.assert_allclose(after.params["shift"], -0.1 * whole["last"]["bias"], rtol=1e-4)
    assert set(after.params) == {"shift"}
    assert float(info.stats["displacement_squared"]) == 0.0


def test_a_step_that_is_not_finite_changes_only_the_step_number(tuner, jitted, base_params):
    state, _ = run(jitted, tuner.init(jax.random.key(0), base_params), base_params, range(3))
    batch = BATCHES.batch(3)
    broken = batch._replace(x1=batch.x1.at[2, 1].set(jnp.nan))
    after, info = jitted(state, base_params, broken)
    assert not info.is_finite
    assert int(after.step) == 4
    assert_trees_equal(after._replace(step=state.step), state)
    healed, info = jitted(after, base_params, batch)
    assert info.is_finite
    assert not np.allclose(jax.tree.leaves(healed.params)[0], jax.tree.leaves(state.params)[0])


def test_an_update_that_overflows_is_left_out(base_params):
    """The gradient is finite, the step is not: such parameters must never reach a checkpoint."""
    tuner = gft.finetuner(GRADUAL, optax.chain(optax.scale(-1e30), optax.scale(1e30)), COOLING)
    state = tuner.init(jax.random.key(0), base_params)
    after, info = jax.jit(tuner.step)(state, base_params, BATCHES.batch(0))
    assert np.isfinite(info.loss)
    assert np.isfinite(info.grad_norm)
    assert not info.is_finite
    assert_trees_equal(after.params, state.params)


def test_the_average_of_half_precision_parameters_moves():
    """In bfloat16 itself it would stop short, at about 1.7 of 2."""
    moving = Objective(lambda params, base, rows, beta: Terms(-params["w"] * rows.x0, rows.x0, {}))
    tuner = gft.finetuner(moving, optax.sgd(0.0), averaging=0.999)
    state = tuner.init(jax.random.key(0), params={"w": jnp.ones(1, jnp.bfloat16)})
    state = state._replace(params={"w": jnp.full(1, 2, jnp.bfloat16)})
    keys = jax.random.split(jax.random.key(0), (6000, 1))
    state, _ = jax.jit(tuner.step_many)(state, None, gft.Batch(jnp.ones((6000, 1), jnp.bfloat16), None, keys))
    np.testing.assert_allclose(state.averaged_params["w"], 2.0, rtol=5e-3)


def test_terms_of_another_shape_are_refused(base_params):
    wrong = Objective(lambda params, base, rows, beta: Terms(jnp.ones((8, 1)), jnp.ones(8), {}))
    with pytest.raises(ValueError, match=r"loss has shape \(8, 1\), weight \(8,\)"):
        gft.mean_loss(wrong, base_params, None, BATCHES.batch(0))


def test_a_runner_keeps_what_was_fetched_and_placed(tuner, base_params):
    """The step donates its state; copies taken before it, and the arrays it was made from, stay."""
    runner = gft.parallel.single_device(tuner)
    saved = jax.device_get(runner.init(jax.random.key(0), base_params))
    restored = jax.device_put(saved)
    state = runner.place(restored)
    best = runner.fetch(state.params)
    jax.block_until_ready(runner.step(state, base_params, BATCHES.batch(0)))
    assert_trees_equal(restored, saved)
    assert_trees_equal(best, saved.params)
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_donating_the_state_leaves_the_callers_weights_alone(tuner, base_params):
    weights = jax.device_put(base_params)
    state = tuner.init(jax.random.key(0), weights)
    jax.block_until_ready(jax.jit(tuner.step, donate_argnums=0)(state, weights, BATCHES.batch(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(weights))


def test_no_parameters_are_closed_over(tuner):
    """Arrays inside a closure become text of the program: its size must not grow with the network."""

    def program(hidden):
        module = gft.networks.ResidualMLP(hidden=hidden, depth=1)
        drift = gft.drifts.from_linen(module)
        base = init_params(module, jax.random.key(0), (3,))
        tuner = gft.finetuner(gft.objectives.gradual(drift), optax.adam(1e-3), COOLING)
        state = tuner.init(jax.random.key(0), base)
        lowered = jax.jit(tuner.step, donate_argnums=0).lower(state, base, BATCHES.batch(0))
        closed = jax.jit(lambda s, b: tuner.step(s, base, b)).lower(state, BATCHES.batch(0))
        return len(lowered.as_text()), len(closed.as_text()), sum(leaf.size for leaf in jax.tree.leaves(base))

    small, _, few = program(8)
    large, closed, many = program(256)
    assert many > 10 * few
    assert large < 1.05 * small
    assert closed > 2.0 * large  # power: the same program with the base inside


def test_base_parameters_exist_once(tuner, base_params):
    """The state of a gradual run is no larger than that of flow matching: the base is not in it."""
    plain = gft.finetuner(gft.objectives.flow_matching(DRIFT), optax.adam(1e-2), averaging=0.5)
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(some.init(jax.random.key(0), base_params)))
        for some in (tuner, plain)
    ]
    assert sizes[0] == sizes[1]


def test_trains_from_scratch_without_a_base():
    params = init_params(MODULE, jax.random.key(0), (3,))
    tuner = gft.finetuner(gft.objectives.flow_matching(DRIFT), optax.adam(1e-2), averaging=None)
    state = tuner.init(jax.random.key(0), params=params)
    assert state.averaged_params is None
    state, infos = run(jax.jit(tuner.step), state, None, range(40))
    losses = [float(info.loss) for info in infos]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gft.finetuner(GRADUAL, optax.sgd(1.0), averaging=1.0), "averaging.*1.0"),
        (lambda: gft.finetuner(GRADUAL, optax.sgd(1.0), num_updates=0), "num_updates must be >= 1, got 0"),
        (lambda: gft.finetuner(GRADUAL, optax.sgd(1.0)).init(jax.random.key(0)), "base_params is None"),
        (
            lambda: gft.finetuner(gft.objectives.flow_matching(DRIFT), optax.sgd(1.0)).init(
                jax.random.key(0)
            ),
            "nothing to start from",
        ),
        (
            lambda: gft.finetuner(GRADUAL, optax.sgd(1.0)).init(
                jax.random.key(0), {"a": jnp.array([1.0, jnp.nan])}
            ),
            r"params\['a'\].*1 values.*of 2",
        ),
        (
            lambda: gft.finetuner(GRADUAL, optax.sgd(1.0)).init(jax.random.key(0), {"n": jnp.arange(3)}),
            r"params\['n'\].*int32",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_of_updates_that_is_no_integer_is_refused(without_hook):
    with pytest.raises(ValueError, match=r"num_updates must be an integer, got 2\.5"):
        gft.finetuner(GRADUAL, optax.sgd(1.0), num_updates=2.5)

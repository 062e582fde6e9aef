"""Low-rank adaptation: what an adapted drift is, what is trained, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from lora_toy import Net, adaptation, base_of, inputs, moved

import gft_jax as gft
from gft_jax.checkpoints import load_adapters, save_adapters
from gft_jax.drifts import evaluate, from_equinox, from_linen, from_nnx, in_precision
from gft_jax.networks.leaf_names import named_leaves
from gft_jax.networks.lora import Difference, LoRAParams, low_rank
from gft_jax.pairing import row_keys

NET = Net()
BASE = base_of(NET)
ADAPTED = adaptation()
START = ADAPTED.adapter.init(jax.random.key(0), BASE)
AWAY = moved(START)


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("module", [Net(), Net(scan=True, remat=True)], ids=["sequence", "loop, again"])
def test_both_sides_are_the_merged_drift_and_at_zero_the_base_bit_for_bit(module):
    adapted, base, drift = adaptation(module.scan), base_of(module), from_linen(module)
    start = adapted.adapter.init(jax.random.key(0), base)
    kernels = {"conv": 3 * 3 * 6, "qkv": 6, "proj": 6}
    assert {name.split("/")[-2] for name in start} == set(kernels)
    assert len(start) == (3 if module.scan else 6)
    sides = adapted.on_activations(drift), adapted.by_merging(drift)
    away = moved(start)

    @jax.jit
    def all_of(base, adapters):
        def ours(side, adapters):
            return side(LoRAParams(base, adapters), *inputs())

        def slope(side):
            return jax.grad(lambda adapters: jnp.sum(ours(side, adapters) ** 2))(adapters)

        merged = drift(adapted.merge(base, adapters), *inputs())
        plain = [drift(base, *inputs()), *(side(base, *inputs()) for side in sides)]
        return [ours(side, adapters) for side in sides], merged, plain, [slope(side) for side in sides]

    ours, merged, plain, slopes = all_of(base, start)
    for velocity in (*ours, merged, *plain[1:]):
        np.testing.assert_array_equal(velocity, plain[0])
    # The drift moves as soon as B does; A has no gradient where B is zero.
    for slope in slopes:
        assert all(np.all(factors.a == 0) and np.any(factors.b != 0) for factors in slope.values())

    ours, merged, plain, slopes = all_of(base, away)
    assert np.abs(merged - plain[0]).min(axis=(1, 2, 3)).max() > 1e-3
    assert_close(ours, [merged, merged])
    assert_close(slopes[0], slopes[1], 2e-5)
    merged = adapted.merge(base, away)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    assert_close(adapted.unmerge(merged, away), base, 1e-6)


def test_an_update_is_alpha_over_rank_times_the_product_for_each_layer_and_part():
    scanned = adaptation(scan=True)
    base = base_of(Net(scan=True))
    adapters = moved(scanned.adapter.init(jax.random.key(0), base))
    update = jax.tree.map(np.subtract, scanned.merge(base, adapters), base)["blocks"]
    a, b = adapters["blocks/qkv/kernel"]
    assert (a.shape, b.shape) == ((2, 6, 6), (2, 2, 18))
    for layer in range(2):
        for part in range(3):
            product = a[layer][:, 2 * part :][:, :2] @ b[layer][:, 6 * part :][:, :6]
            found = update["qkv"]["kernel"][layer][:, 6 * part :][:, :6]
            np.testing.assert_allclose(found, 1.5 * product, atol=1e-5)
    a, b = adapters["blocks/conv/kernel"]
    assert (a.shape, b.shape) == ((2, 3, 3, 6, 2), (2, 2, 6))
    np.testing.assert_allclose(update["conv"]["kernel"], 1.5 * np.einsum("lhwir,lro->lhwio", a, b), atol=1e-5)
    assert np.all(update["qkv"]["bias"] == 0)


def test_initial_factors_depend_on_key_and_name_and_have_the_variance_of_their_inputs():
    other = low_rank(["*/proj/kernel"], rank=2).adapter.init(jax.random.key(0), BASE)
    for name, factors in other.items():  # the same whatever else is adapted
        np.testing.assert_array_equal(factors.a, START[name].a)
    assert not np.allclose(START["blocks_0/proj/kernel"].a, START["blocks_1/proj/kernel"].a)
    again = ADAPTED.adapter.init(jax.random.key(1), BASE)
    assert not np.allclose(again["blocks_0/proj/kernel"].a, START["blocks_0/proj/kernel"].a)
    wide = {"kernel": jnp.zeros((3, 3, 20, 200), jnp.bfloat16)}
    a = low_rank(["*"], rank=100).adapter.init(jax.random.key(0), wide)["kernel"].a
    assert a.dtype == jnp.float32
    num = a.size
    z = (float(jnp.mean(a**2)) * 180 - 1) / np.sqrt(2 / num)
    assert abs(z) < 4
    assert abs((float(jnp.mean(a**2)) * 20 - 1) / np.sqrt(2 / num)) > 40  # that of the channels alone


class Line(nn.Module):
    """``y = W x``, on vectors."""

    @nn.compact
    def __call__(self, t, x, cond=None):
        return nn.Dense(8, use_bias=False, name="layer")(x)


def regression(drift):
    """Least squares of the drift at x0 on x1."""

    def loss(params, base_params, batch, temperature):
        error = jnp.sum((evaluate(drift, params, 0.0, batch.x0) - batch.x1) ** 2, axis=-1)
        return gft.Terms(error, jnp.ones_like(error), {})

    return gft.Objective(loss=loss)


@pytest.mark.parametrize("side", ["on_activations", "by_merging"])
def test_a_low_rank_shift_is_recovered_by_its_rank_and_not_by_less(side):
    """With whitened inputs the loss is ``|W + A B - W*|^2``: its least value at rank one is the second singular value
    of the shift, squared (Eckart and Young)."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(8, 2)))[0] for _ in range(2))
    singular = np.array([3.0, 1.5])
    base = {"layer": {"kernel": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)}}
    target = np.asarray(base["layer"]["kernel"]) + left * singular @ right.T
    x0 = np.eye(8, dtype=np.float32)
    batch = gft.Batch(jnp.asarray(x0), jnp.asarray(x0 @ target, jnp.float32), row_keys(0, 0, 8))
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (1500, *leaf.shape)), batch)
    for rank, least in ((1, singular[1] ** 2), (2, 0.0)):
        adapted = low_rank(["*"], rank=rank, alpha=2.0)
        objective = regression(getattr(adapted, side)(from_linen(Line())))
        tuner = gft.finetuner(objective, optax.adam(3e-2), adapter=adapted.adapter, averaging=None)
        state, infos = jax.jit(tuner.step_many)(tuner.init(jax.random.key(0), base), base, many)
        assert abs(8 * infos.loss[-1] - least) < 1e-3
        if rank == 2:
            merged = adapted.merge(base, state.params)["layer"]["kernel"]
            np.testing.assert_allclose(merged, target, atol=1e-2)


def product_shapes(jaxpr):
    """Shapes of the results of all matrix products and convolutions of a program, those of its parts included."""
    shapes = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            shapes |= {tuple(sorted(out.aval.shape)) for out in equation.outvars}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                shapes |= product_shapes(inner)
    return shapes


def test_no_gradient_of_a_kernel_is_formed_and_the_optimiser_holds_the_adapters_alone():
    drift, optimizer = from_linen(Net(scan=True, remat=True)), optax.adam(1e-3)
    adapted, base = adaptation(scan=True, rank=1), base_of(Net(scan=True))
    x = jnp.ones((5, 4, 4, 2))
    batch = gft.Batch(x, x, row_keys(0, 0, 5), jnp.zeros(5, int))
    kernels = [(6, 6), (6, 18), (3, 3, 6, 6)]
    formed = {}
    for name, student, adapter in (
        ("full", drift, None),
        ("merging", adapted.by_merging(drift), adapted.adapter),
        ("activations", adapted.on_activations(drift), adapted.adapter),
    ):
        tuner = gft.finetuner(
            gft.objectives.gradual(student), optimizer, gft.cooling.constant(temperature=1.0), adapter=adapter
        )
        state = jax.eval_shape(lambda base, tuner=tuner: tuner.init(jax.random.key(0), base), base)
        shapes = product_shapes(jax.make_jaxpr(tuner.step)(state, base, batch).jaxpr)
        formed[name] = [shape in shapes for shape in kernels]
    assert formed["full"] == [True, True, True]
    assert any(formed["merging"])
    assert formed["activations"] == [False, False, False]
    num_adapters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert num_adapters == 2 * (3 * 3 * 6 + 6 + 6 * 3 + 18 + 6 + 6)
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    assert sum(moments) == 2 * num_adapters + 1


WAVY = lambda x, cond=None: jnp.sum(jnp.sin(x), axis=-1)  # noqa: E731
REWARD = {"cost_weight": 0.5, "num_steps": 3}
METHODS = {
    "flow matching": gft.objectives.flow_matching,
    "gradual": gft.objectives.gradual,
    "gradual, on the base path": lambda drift: gft.objectives.gradual(
        drift, base_every=2, base_path=gft.objectives.rolled_out(2)
    ),
    "terminal": lambda drift: gft.objectives.terminal(drift, lambda x: jnp.mean(x, axis=-1)),
    "replay": lambda drift: gft.objectives.with_replay(
        gft.objectives.gradual(drift), gft.objectives.flow_matching(drift), every=2, weight=0.5
    ),
    "adjoint matching": lambda drift: gft.objectives.adjoint_matching(drift, WAVY, **REWARD),
    "memoryless": lambda drift: gft.objectives.memoryless_adjoint_matching(drift, WAVY, **REWARD),
    "draft": lambda drift: gft.objectives.draft(drift, WAVY, **REWARD),
    "refl": lambda drift: gft.objectives.refl(drift, WAVY, num_steps=3, truncation=2),
    "value guidance": lambda drift: gft.objectives.value_guidance(drift, WAVY, **REWARD),
    "weighting": lambda drift: gft.objectives.reward_weighted(
        drift, WAVY, sharpness=1.0, base_weight=0.5, num_steps=3
    ),
}


PLAIN = ("flow matching", "gradual", "terminal", "adjoint matching", "weighting")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[] if name in PLAIN else pytest.mark.slow)
        for name, make in METHODS.items()
    ],
)
def test_every_method_trains_adapters_of_the_one_base(make):
    """At zero adapters the loss is that of all parameters at the base, and away from zero that of the merged ones."""
    module = gft.networks.ResidualMLP(hidden=4, depth=1, time_features=2)
    drift = from_linen(module)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: gft.loading.init_params(module, key, (2,)), jax.random.key(0))
    base = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), shapes)
    adapted = low_rank(["*kernel"], rank=1)
    x = jnp.asarray(rng.normal(size=(2, 4, 2)), jnp.float32)
    batch = gft.Batch(x[0], x[1], row_keys(0, 0, 4))
    if make not in list(METHODS.values())[:5]:
        batch = batch._replace(x1=None)
    whole, ours = make(drift), make(adapted.on_activations(drift))

    @jax.jit
    def losses(adapters):
        params = adapted.adapter.apply(adapters, base)
        state = ours.init(params, base)
        one = gft.mean_loss(ours, params, base, batch, 0.7, state)[0]
        return one, gft.mean_loss(whole, adapted.merge(base, adapters), base, batch, 0.7, state)[0]

    start = adapted.adapter.init(jax.random.key(0), base)
    np.testing.assert_array_equal(*losses(start))
    away = losses(moved(start))
    np.testing.assert_allclose(*away, rtol=1e-4)
    assert abs(away[0] / losses(start)[0] - 1) > 1e-3


def test_a_run_on_the_plane_improves_and_goes_on_as_if_not_interrupted(tmp_path):
    """Gradual fine-tuning of a flow that carries all noise by (-2, 0), towards N((2, 0), I / 4), by chunks of steps."""
    rng = np.random.default_rng(0)
    drift = from_linen(Layer())
    base = {
        "hidden": {"kernel": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32), "bias": jnp.zeros(8)},
        "out": {"kernel": jnp.zeros((8, 2)), "bias": jnp.asarray([-2.0, 0.0])},
    }
    adapted = low_rank(["*"], rank=2)
    student = adapted.on_activations(drift)
    tuner = gft.finetuner(
        gft.objectives.gradual(student),
        optax.adam(3e-2),
        gft.cooling.self_paced(100, start=1.0),
        adapter=adapted.adapter,
        num_microbatches=2,
    )
    new = rng.normal((2.0, 0.0), 0.5, (256, 2)).astype(np.float32)
    stream = gft.pairing.batches(new, batch_size=32, seed=1)
    step_many = jax.jit(tuner.step_many)
    state, first = step_many(tuner.init(jax.random.key(1), base), base, stream.many(0, 50))
    with gft.checkpoints.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(50, state)
        restored, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    for chunk in range(1, 6):
        state, infos = step_many(state, base, stream.many(50 * chunk, 50))
        restored, _ = step_many(restored, base, stream.many(50 * chunk, 50))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert infos.stats["flow_matching_loss"][-10:].mean() < 0.3 * first.stats["flow_matching_loss"][0]
    assert infos.temperature[-1] < 0.1

    t, x = jnp.full(256, 0.5), jnp.asarray(rng.normal(size=(256, 2)), jnp.float32)
    one, other = student(LoRAParams(base, state.params), t, x), drift(adapted.merge(base, state.params), t, x)
    assert_close(one, other)
    assert one[:, 0].mean() > 1.5 > -1.5 > drift(base, t, x)[:, 0].mean()


class Layer(nn.Module):
    """One hidden layer, on the plane."""

    @nn.compact
    def __call__(self, t, x, cond=None):
        hidden = nn.Dense(8, name="hidden")(jnp.concatenate([x, t[:, None]], axis=-1))
        return nn.Dense(2, name="out")(jnp.tanh(hidden))


def test_other_libraries_go_by_merging():
    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)])

        def __call__(self, t, x):
            return self.layers[1](jnp.tanh(self.layers[0](x)))

    class Equinox(eqx.Module):
        layers: list

        def __call__(self, t, x):
            return self.layers[1](jnp.tanh(self.layers[0](x)))

    keys = jax.random.split(jax.random.key(0))
    layers = [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 3, key=keys[1])]
    t, x = jnp.zeros(2), jnp.ones((2, 3))
    for (drift, base), kernel in (
        (from_nnx(Nnx(nnx.Rngs(0))), "kernel"),
        (from_equinox(Equinox(layers)), "weight"),
    ):
        adapted = low_rank([f"layers/1/{kernel}"], rank=2, alpha=1.0)
        start = adapted.adapter.init(jax.random.key(0), base)
        assert list(start) == [f"layers/1/{kernel}"]
        away, student = moved(start), adapted.by_merging(drift)
        np.testing.assert_array_equal(student(LoRAParams(base, start), t, x), drift(base, t, x))
        a, b = away[f"layers/1/{kernel}"]
        by_hand = dict(named_leaves(base))
        by_hand[f"layers/1/{kernel}"] = by_hand[f"layers/1/{kernel}"] + a @ b / 2
        expected = drift(jax.tree.unflatten(jax.tree.structure(base), by_hand.values()), t, x)
        assert np.abs(expected - drift(base, t, x)).max() > 0.01
        assert_close(student(LoRAParams(base, away), t, x), expected)
        with pytest.raises(ValueError, match="merging"):
            adapted.on_activations(drift)(LoRAParams(base, away), t, x)


def test_precision_is_that_of_the_layer_and_of_the_base():
    t, x, cond = inputs(dtype=jnp.bfloat16)
    half = gft.drifts.cast(BASE, jnp.bfloat16)
    drift = from_linen(NET)
    for student, dtype in (
        (ADAPTED.on_activations(in_precision(drift)), jnp.float32),
        (in_precision(ADAPTED.on_activations(drift)), jnp.float32),
        (ADAPTED.on_activations(drift), jnp.bfloat16),
    ):
        velocity = jax.jit(student)(LoRAParams(half, AWAY), t, x, cond)
        assert velocity.dtype == dtype
        exact = drift(ADAPTED.merge(BASE, AWAY), t, x.astype(jnp.float32), cond)
        error = np.abs(velocity.astype(jnp.float32) - exact).max() / np.abs(exact).max()
        assert 0 < error < 0.1
    assert {leaf.dtype for leaf in jax.tree.leaves(ADAPTED.merge(half, AWAY))} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(ADAPTED.adapter.init(jax.random.key(0), half))} == {
        jnp.dtype(jnp.float32)
    }


def test_adapters_are_saved_alone_and_go_to_their_base_alone(tmp_path):
    gft.checkpoints.save_adapters(tmp_path / "a", ADAPTED, BASE, AWAY)
    adapted, adapters = gft.checkpoints.load_adapters(tmp_path / "a", BASE)
    assert adapted.settings == ADAPTED.settings
    assert adapters.keys() == AWAY.keys()
    for name, factors in adapters.items():
        for ours, theirs in zip(factors, AWAY[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert_close(gft.checkpoints.load_params(tmp_path / "a", AWAY), AWAY, 0)  # nothing else is there

    other = jax.tree.map(lambda leaf: leaf, BASE)
    other["last"]["bias"] = other["last"]["bias"] + 1e-6
    with pytest.raises(
        ValueError, match=r"belong to a base with the fingerprint \w{16}\.\.\., and base_params"
    ):
        gft.checkpoints.load_adapters(tmp_path / "a", other)
    with pytest.raises(FileNotFoundError):
        gft.checkpoints.load_adapters(tmp_path / "b", BASE)
    gft.checkpoints.save_params(tmp_path / "c", AWAY)
    with pytest.raises(ValueError, match="another kind: load them with load_params"):
        gft.checkpoints.load_adapters(tmp_path / "c", BASE)
    lacking = {name: AWAY[name] for name in list(AWAY)[1:]}
    with pytest.raises(ValueError, match="no adapters for blocks_0/conv/kernel"):
        gft.checkpoints.save_adapters(tmp_path / "d", ADAPTED, BASE, lacking)
    assert not (tmp_path / "d").exists()


def test_settings_out_of_range_are_refused(without_hook):
    rows = [
        ({"patterns": "*"}, r"patterns must be a sequence.*got '\*'"),
        ({"patterns": []}, "patterns is empty"),
        ({"rank": 0}, "rank must be an integer >= 1, got 0"),
        ({"rank": 1.5}, "rank must be an integer >= 1, got 1.5"),
        ({"alpha": 0.0}, "alpha must be positive and finite, got 0.0"),
        ({"alpha": float("inf")}, "alpha must be positive and finite, got inf"),
        ({"stacked": "blocks"}, "stacked must be a sequence"),
        ({"parts": {"*": 0}}, r"parts\['\*'\] must be an integer >= 1, got 0"),
    ]
    for options, message in rows:
        with pytest.raises(ValueError, match=message):
            low_rank(**{"patterns": ["*"], "rank": 1} | options)


def test_what_does_not_fit_the_parameters_is_refused_by_name():
    rows = [
        (
            {"patterns": ["*/attention/*"]},
            r"'\*/attention/\*' matches nothing; there are blocks_0/conv/bias, ",
        ),
        (
            {"patterns": ["*/bias"]},
            r"of kernels.*'\*/bias' matches nothing; there are blocks_0/conv/kernel, ",
        ),
        ({"stacked": ["layers"]}, "stacked: the pattern 'layers' matches nothing"),
        ({"parts": {"*/kv/*": 2}}, r"parts: the pattern '\*/kv/\*' matches nothing"),
        ({"parts": {"*qkv/*": 4}}, "blocks_0/qkv/kernel has 18 outputs, which do not divide into parts=4"),
        ({"rank": 3}, r"rank=3 is beyond what last/kernel of shape \(6, 2\) can have, 2"),
    ]
    for options, message in rows:
        with pytest.raises(ValueError, match=message):
            low_rank(**{"patterns": ["*/kernel"], "rank": 1} | options).adapter.init(jax.random.key(0), BASE)
    many = {f"layer_{i}": {"kernel": jnp.ones((2, 2))} for i in range(30)}
    with pytest.raises(ValueError, match=r"layer_3/kernel and 6 more$"):
        low_rank(["x"], rank=1).adapter.init(jax.random.key(0), many)

    drift, calls = from_linen(NET), inputs()
    rows = [
        (low_rank(["labels/*"], rank=1), BASE, "labels/embedding is not the kernel of a linen layer"),
        (
            low_rank(["*"], rank=1),
            {"biases": jnp.ones((2, 6))},
            "biases is not.*with a leading axis of layers, name it",
        ),
    ]
    for adapted, base, message in rows:
        params = LoRAParams(base, adapted.adapter.init(jax.random.key(0), base))
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(adapted.on_activations(drift), params, *calls)
    base = base_of(Net(scan=True))
    params = LoRAParams(base, low_rank(["*/proj/kernel"], rank=1).adapter.init(jax.random.key(0), base))
    with pytest.raises(
        ValueError, match=r'Dense blocks/proj runs.*stacked, such as \["blocks/proj/kernel"\]'
    ):
        low_rank(["*/proj/kernel"], rank=1).on_activations(from_linen(Net(scan=True)))(params, *calls)
    grouped = from_linen(Grouped())
    base = gft.loading.init_params(Grouped(), jax.random.key(0), (4, 4, 2))
    params = LoRAParams(base, low_rank(["*"], rank=1).adapter.init(jax.random.key(0), base))
    with pytest.raises(ValueError, match="Conv conv has groups or a mask: adapt it by merging"):
        low_rank(["*"], rank=1).on_activations(grouped)(params, *calls)

    wrong = LoRAParams(BASE, low_rank(["blocks*"], rank=1).adapter.init(jax.random.key(0), BASE))
    with pytest.raises(ValueError, match=r"blocks_0/conv/kernel must have the shapes \(3, 3, 6, 2\) and"):
        ADAPTED.on_activations(drift)(wrong, *calls)
    with pytest.raises(ValueError, match="which the patterns do not choose"):
        low_rank(["*proj*"], rank=2).merge(BASE, START)
    with pytest.raises(ValueError, match="must be a mapping name -> Factors, as init makes it, got tuple"):
        ADAPTED.merge(BASE, ())


class Grouped(nn.Module):
    """A convolution of two groups."""

    @nn.compact
    def __call__(self, t, x, cond=None):
        return nn.Conv(2, (3, 3), feature_group_count=2, name="conv")(x)


def test_without_a_base_there_is_nothing_to_adapt():
    drift = ADAPTED.on_activations(from_linen(NET))
    _, x, cond = inputs()
    batch = gft.Batch(x, x, row_keys(0, 0, 3), cond)
    plain = gft.finetuner(gft.objectives.flow_matching(drift), optax.sgd(0.1), adapter=ADAPTED.adapter)
    with pytest.raises(ValueError, match=r"low-rank adaptation is of pretrained.*base_params is None"):
        plain.init(jax.random.key(0))
    state = plain.init(jax.random.key(0), BASE)
    with pytest.raises(ValueError, match="base_params is None"):
        plain.step(state, None, batch)
    distance = gft.objectives.l2_sp(gft.objectives.flow_matching(drift), 1.0)
    tuner = gft.finetuner(distance, optax.sgd(0.1), adapter=ADAPTED.adapter)
    with pytest.raises(ValueError, match="those of this drift have another structure"):
        jax.eval_shape(tuner.step, state, BASE, batch)


def test_what_is_trained_whole_is_a_difference_from_the_base(tmp_path):
    lora = low_rank(["*/qkv/kernel"], rank=2, whole=["labels/*", "last/bias"])
    start = lora.adapter.init(jax.random.key(0), BASE)
    whole = {name: part for name, part in start.items() if isinstance(part, Difference)}
    assert sorted(whole) == ["labels/embedding", "last/bias"]
    drift = from_linen(NET)
    t, x, _ = inputs()
    cond = jnp.arange(len(x)) % 4

    def velocity(side, adapters):
        return side(drift)(LoRAParams(BASE, adapters), t, x, cond)

    def slope(side, adapters):
        return jax.jit(jax.grad(lambda adapters: jnp.sum(velocity(side, adapters) ** 2)))(adapters)

    of_all = jax.jit(jax.grad(lambda params: jnp.sum(drift(params, t, x, cond) ** 2)))(BASE)
    for side in (lora.on_activations, lora.by_merging):
        np.testing.assert_array_equal(velocity(side, start), drift(BASE, t, x, cond))
        for name in whole:
            assert_close(slope(side, start)[name].delta, named_leaves(of_all)[name])
    away = moved(start)
    expected = drift(lora.merge(BASE, away), t, x, cond)
    assert np.abs(expected - drift(BASE, t, x, cond)).max() > 0.1
    for side in (lora.on_activations, lora.by_merging):
        assert_close(velocity(side, away), expected)
        assert lora.unused(side(drift), BASE, t, x, cond) == []
    assert_close(lora.unmerge(lora.merge(BASE, away), away), BASE)
    save_adapters(tmp_path / "adapters", lora, BASE, away)
    again, loaded = load_adapters(tmp_path / "adapters", BASE)
    assert again.settings.whole == ("labels/*", "last/bias")
    jax.tree.map(np.testing.assert_array_equal, loaded, away)
    for wrong, told in ((["*/qkv/kernel"], "named by patterns and by whole"), (["nothing"], "nothing")):
        with pytest.raises(ValueError, match=told):
            low_rank(["*/qkv/kernel"], rank=2, whole=wrong).adapter.init(jax.random.key(0), BASE)
    with pytest.raises(ValueError, match=r"the difference of last/bias must have its shape \(2,\)"):
        velocity(lora.on_activations, away | {"last/bias": Difference(jnp.zeros(3))})

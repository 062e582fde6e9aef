"""One network in linen, nnx, equinox and as a plain function: the same drift, and the same fine-tuning."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import gft_jax as gft
from gft_jax.drifts import evaluate, from_equinox, from_linen, from_nnx

ROWS, WIDTH, HIDDEN, STEPS = 6, 3, 5, 20


def weights(seed):
    """Kernels ``[in, out]`` and biases of the two layers."""
    rng = np.random.default_rng(seed)
    shapes = {"first": (1 + 2 * WIDTH, HIDDEN), "last": (HIDDEN, WIDTH)}
    return {
        name: {"kernel": rng.normal(size=shape) / 2, "bias": rng.normal(size=shape[1:])}
        for name, shape in shapes.items()
    }


class Linen(linen.Module):
    @linen.compact
    def __call__(self, t, x, cond):
        h = jnp.concatenate([t[:, None], x, cond], axis=-1)
        h = jnp.tanh(linen.Dense(HIDDEN, param_dtype=jnp.float64, name="first")(h))
        return linen.Dense(WIDTH, param_dtype=jnp.float64, name="last")(h)


class Nnx(nnx.Module):
    def __init__(self):
        self.first, self.last = (
            nnx.Linear(num_in, num_out, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            for num_in, num_out in ((1 + 2 * WIDTH, HIDDEN), (HIDDEN, WIDTH))
        )

    def __call__(self, t, x, cond):
        return self.last(jnp.tanh(self.first(jnp.concatenate([t[:, None], x, cond], axis=-1))))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __call__(self, t, x, cond):
        return self.last(jnp.tanh(self.first(jnp.concatenate([t[None], x, cond]))))


def plain(params, t, x, cond=None):
    h = jnp.concatenate([t[:, None], x, cond], axis=-1) @ params["first"]["kernel"] + params["first"]["bias"]
    return jnp.tanh(h) @ params["last"]["kernel"] + params["last"]["bias"]


# Of each kind: the drift, its parameters with given weights, and the weights of its parameters.


def of_linen(given):
    return from_linen(Linen()), jax.tree.map(jnp.asarray, given), lambda params: params


def of_nnx(given):
    model = Nnx()
    for name, layer in (("first", model.first), ("last", model.last)):
        layer.kernel[...] = jnp.asarray(given[name]["kernel"])
        layer.bias[...] = jnp.asarray(given[name]["bias"])

    def read(params):
        return {
            layer: {name: params[layer][name][...] for name in ("kernel", "bias")}
            for layer in ("first", "last")
        }

    return *from_nnx(model), read


def of_equinox(given):
    layers = []
    for layer in given.values():
        linear = eqx.nn.Linear(*layer["kernel"].shape, key=jax.random.key(0))
        arrays = jnp.asarray(layer["kernel"].T), jnp.asarray(layer["bias"])
        layers.append(eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, arrays))

    def read(params):
        return {
            name: {"kernel": layer.weight.T, "bias": layer.bias}
            for name, layer in (("first", params.first), ("last", params.last))
        }

    return *from_equinox(Equinox(*layers)), read


def of_function(given):
    return plain, jax.tree.map(jnp.asarray, given), lambda params: params


def tuned(kind, num_steps=STEPS):
    """Velocities of the base, and weights, their average and velocities after gradual fine-tuning."""
    drift, base, read = kind(weights(0))
    rng = np.random.default_rng(1)
    x0, x1, cond = (jnp.asarray(rng.normal(size=(num_steps, ROWS, WIDTH))) for _ in range(3))
    keys = jax.random.split(jax.random.key(2), (num_steps, ROWS))
    batches = gft.Batch(x0, x1 + 2, keys, cond)
    tuner = gft.finetuner(
        gft.objectives.gradual(drift, gft.paths.linear()),
        optax.adam(1e-2),
        gft.cooling.linear(STEPS, temperature=(2.0, 0.1)),
        averaging=0.9,
    )
    t = jnp.linspace(0, 1, ROWS)

    @jax.jit
    def run(base, batches):
        start = tuner.init(jax.random.key(0), base)
        state, info = tuner.step_many(start, base, batches)
        velocities = [evaluate(drift, params, t, x0[0], cond[0]) for params in (base, state.params)]
        return velocities, state.params, state.averaged_params, info.loss

    velocities, params, averaged, losses = run(base, batches)
    return velocities, read(params), read(averaged), losses


def test_all_kinds_have_the_same_drift_and_the_same_fine_tuning(x64):
    expected = tuned(of_function)
    assert np.abs(expected[0][1] - expected[0][0]).max() > 0.05  # it moved
    shorter = tuned(of_function, STEPS - 1)
    for kind in (of_linen, of_nnx, of_equinox):
        found = tuned(kind)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    difference = np.abs(shorter[1]["last"]["bias"] - expected[1]["last"]["bias"]).max()
    assert difference > 1e-4  # power: one step less shows

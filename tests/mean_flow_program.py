"""Run by test_mean_flow.py in a process of its own: a step of gradual MeanFlow on several fake devices beside one."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parallel_problem import batch, worst

import gft_jax as gft
from gft_jax.drifts import from_linen, two_times
from gft_jax.networks import ResidualMLP, two_time_params

assert jax.local_device_count() == int(sys.argv[1]), jax.local_devices()
network = ResidualMLP(hidden=16, depth=1, two_times=True)
one_time = gft.loading.init_params(network.clone(two_times=False), jax.random.key(0), (3,))
initial = gft.loading.init_params(network, jax.random.key(1), (3,))
base = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.05), two_time_params(one_time, initial))
objective = gft.objectives.gradual_mean_flow(two_times(from_linen(network)), same_time=0.5)


def moved(make_runner):
    """The gradient at the base, as the change by one step of plain gradient descent, and the stats."""
    tuner = gft.finetuner(objective, optax.sgd(1.0), gft.cooling.constant(temperature=1.0))
    runner = make_runner(tuner)
    state, info = runner.step(runner.init(jax.random.key(0), base), runner.place(base), batch(0))
    return jax.tree.map(np.subtract, runner.fetch(state).params, base), info.stats


one, stats = moved(gft.parallel.single_device)
print("size", max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one)))
for name, form in (
    ("pmapped", gft.parallel.pmapped),
    ("sharded", lambda tuner: gft.parallel.sharded(tuner, gft.parallel.mesh())),
):
    many, others = moved(form)
    print(f"{name}_gradient", worst(many, one))
    print(f"{name}_stats", worst(others, stats))

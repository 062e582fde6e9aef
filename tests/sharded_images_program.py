"""Run by test_image_forms.py in a process of its own: the first step of a run on latents, a SiT split over devices."""

import os
import sys
import tempfile

import jax
import numpy as np
import optax
from parallel_problem import worst

import gft_jax as gft
from experiments import train
from experiments.images.bench import ImageBench
from gft_jax.loading import init_params, save_model

NUM_DEVICES = int(sys.argv[1])
assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
SHAPE = (4, 4, 2)
MODULE = gft.networks.SiT(hidden_size=64, depth=1, num_heads=2, patch_size=2, num_classes=4)
rng = np.random.default_rng(0)
base_params = jax.tree.map(
    lambda leaf: np.asarray(leaf) + rng.normal(0, 0.1, leaf.shape).astype(np.float32),
    init_params(MODULE, jax.random.key(0), SHAPE),
)


def stepped(*flags):
    """Change of the parameters by one step, and how some of the new ones lie."""
    settings = ["images", "--data", "latents.npz", "--base", "base", "--methods", "plain", *flags]
    # Plain gradient descent, whose step shows the gradient: Adam's is of one size whatever that is.
    config = train.parse([*settings, "--batch-size", "8", "--num-evaluated", "2"])
    bench = ImageBench(config, config.task())
    method = bench.method("plain")._replace(optimizer=optax.sgd(1.0))
    bench.method = lambda name: method
    runner = bench.runner("plain")
    placed = runner.place(base_params)
    state = runner.init(jax.random.key(0), placed)
    state, _ = jax.block_until_ready(
        runner.step(state, placed, bench.stream("plain", 0, base_params).batch(0))
    )
    change = jax.tree.map(lambda new, old: new - old, runner.fetch(state.params), base_params)
    layers = {"fc2": state.params["blocks_0"]["fc2"], "t_embedder": state.params["t_embedder_0"]}
    return change, {name: layer["kernel"].sharding for name, layer in layers.items()}


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    save_model("base", MODULE, base_params, SHAPE)
    latents = rng.normal(size=(32, *SHAPE)).astype(np.float32)
    np.savez("latents.npz", latents=latents, labels=np.arange(32) % 4)
    one, _ = stepped()
    many, shardings = stepped("--parallel", "sharded", "--fsdp", str(NUM_DEVICES))
print("difference", worst(many, one))
print("size", max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one)))
for name, sharding in shardings.items():
    print(name, tuple(sharding.spec))

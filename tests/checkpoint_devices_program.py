"""Run by test_checkpoint_devices.py with four fake devices: spread arrays are saved, and restored elsewhere."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gft_jax.checkpoints import Checkpoints

NUM_DEVICES, folder = int(sys.argv[1]), sys.argv[2]
assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()


def mesh_of(*shape):
    axes = ("data", "fsdp")[: len(shape)]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def bits(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


host = {
    "w": jnp.arange(32.0).reshape(8, 4) / 7,
    "half": jnp.arange(8, dtype=jnp.bfloat16),
    "step": jnp.int32(3),
    "key": jax.random.key(1),
    "keys": jax.random.split(jax.random.key(1), 8),
    "no rows": jnp.zeros((0, 4)),
}
expected = jax.tree.map(bits, host)
wide, narrow, single = mesh_of(2, 2), mesh_of(2), mesh_of(1)


def placed(tree, spec_of):
    return {name: jax.device_put(leaf, spec_of(name), may_alias=False) for name, leaf in tree.items()}


def over(mesh, axis):
    """Rows over an axis, where there are rows."""
    specs = {name: PartitionSpec(axis) if leaf.ndim else PartitionSpec() for name, leaf in host.items()}
    return lambda name: NamedSharding(mesh, specs[name])


layouts = {
    "replicated": lambda name: NamedSharding(wide, PartitionSpec()),
    "spread": over(wide, "fsdp"),
    "spread over both axes": over(wide, ("data", "fsdp")),
    "fewer devices": over(narrow, "data"),
    "one device": over(single, "data"),
}
donating = jax.jit(lambda leaf: leaf * -1, donate_argnums=0)
with Checkpoints(folder, keep_latest=None) as checkpoints:
    for step, spec_of in enumerate(layouts.values()):
        state = placed(host, spec_of)
        checkpoints.save(step, state)
        jax.block_until_ready(donating(state["w"]))  # while the save still runs
for step, saved_as in enumerate(layouts):
    for restored_as, spec_of in layouts.items():
        shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in host.items()}
        like = {name: jax.ShapeDtypeStruct(*shapes[name], sharding=spec_of(name)) for name in shapes}
        with Checkpoints(folder) as checkpoints:
            restored, _ = checkpoints.restore(like, step=step)
        for name, leaf in restored.items():
            where = (saved_as, restored_as, name)
            assert leaf.sharding.is_equivalent_to(spec_of(name), leaf.ndim), where
            np.testing.assert_array_equal(bits(leaf), expected[name], err_msg=str(where))
print("restored", len(layouts) ** 2)
odd = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=NamedSharding(wide, PartitionSpec(None, "fsdp")))
with Checkpoints(folder) as checkpoints:
    checkpoints.save(9, {"w": jnp.ones((8, 3))})
    try:
        checkpoints.restore({"w": odd})
    except ValueError as error:
        print("refused", error)

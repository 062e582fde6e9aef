"""Run by test_checkpoint_devices.py as one of two processes, with two fake devices each: they save and restore."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gft_jax.checkpoints import Best, Checkpoints, agreed, has_params, load_params, save_params

port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
address = f"127.0.0.1:{port}"
jax.distributed.initialize(
    address, 2, process, coordinator_bind_address=address if process == 0 else None, initialization_timeout=60
)
mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
spread, everywhere = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())


def over_all(value, sharding):
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def state_at(step):
    return {
        "w": over_all(np.arange(32.0, dtype=np.float32).reshape(8, 4) * step, spread),
        "step": over_all(np.asarray(step, np.int32), everywhere),
        "own": jnp.full(3, step + 100.0 * process),
    }


def refuse():
    raise ValueError("no such run")


assert agreed(lambda: ["from", process]) == ["from", 0]
try:
    agreed(refuse)
except ValueError as error:
    print("refused", error)
with Checkpoints(f"{folder}/steps", keep_latest=1, keep_best=Best("w2")) as checkpoints:
    assert checkpoints.latest_step() is None
    for step, w2 in ((1, 0.5), (2, 0.1), (3, 0.7)):
        checkpoints.save(step, state_at(step), {"step": step}, {"w2": w2})
    print("latest", checkpoints.latest_step())
    print("best", checkpoints.best_step())
    restored, metadata = checkpoints.restore(state_at(0), step=2)
    assert metadata == {"step": 2}
    assert restored["w"].sharding == spread
    for shard in restored["w"].addressable_shards:
        rows = np.arange(32.0).reshape(8, 4)[shard.index] * 2
        np.testing.assert_array_equal(shard.data, rows)
    print("own", restored["own"].tolist())  # the first process's
params = {"b": jnp.full(2, 7.0 + process)}
save_params(f"{folder}/params", params)
assert has_params(f"{folder}/params")
print("params", load_params(f"{folder}/params", params)["b"].tolist())
try:
    save_params(f"{folder}/params", params)
except FileExistsError:
    print("taken", True)
jax.distributed.shutdown()

"""Over which devices and processes a run is spread, by its settings, and what those devices can do."""

from typing import Any

import jax
from flax import linen

import gft_jax as gft
from experiments.configs.settings import RunSettings
from gft_jax.finetuning import FineTuner
from gft_jax.parallel import Runner


def join_processes(config: RunSettings) -> None:
    """Joins the other processes of the run, if it has any; comes before anything else that JAX does.

    Raises:
        ValueError: for flags that cannot be.
        OSError: if the others do not come, or the port is in use.
    """
    flags = (config.coordinator, config.num_processes, config.process_id)
    if config.distributed or flags != (None, None, None):
        gft.parallel.start(*flags)


def check_devices(config: RunSettings) -> None:
    """Refuses settings that do not fit the devices there are.

    Raises:
        ValueError: that says what was given and what is allowed.
    """
    if config.parallel == "single" and jax.process_count() > 1:
        raise ValueError(
            f"--parallel is single, under which {jax.process_count()} processes would train apart; allowed is pmap or "
            "sharded"
        )
    if config.parallel == "sharded":
        gft.parallel.mesh(fsdp=config.fsdp)
    config.check_devices(1 if config.parallel == "single" else jax.device_count())


def runner_of(config: RunSettings, tuner: FineTuner, module: linen.Module) -> Runner:
    """The fine-tuner in the form that was asked for; parameters of a SiT are split by its own rule."""
    if config.parallel == "sharded":
        rule = gft.parallel.sit_rule(config.fsdp) if isinstance(module, gft.networks.SiT) else None
        return gft.parallel.sharded(tuner, gft.parallel.mesh(fsdp=config.fsdp), rule=rule)
    return gft.parallel.pmapped(tuner) if config.parallel == "pmap" else gft.parallel.single_device(tuner)


def fuses_attention(module: linen.Module, device: Any) -> bool:
    """Whether the attention of a network can be cuDNN's: that of a SiT on NVIDIA GPUs of compute capability 8 or more.

    Heads must be a multiple of 8 features wide, and 128 at most.

    Args:
        module: the network.
        device: of `jax.devices`.
    """
    if not isinstance(module, gft.networks.SiT) or device.platform != "gpu":
        return False
    # Of other makers' devices it is a name.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    width = module.hidden_size // module.num_heads
    return major.isdigit() and int(major) >= 8 and width % 8 == 0 and width <= 128

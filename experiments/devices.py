"""Over which devices and processes a run is spread, by its settings."""

import jax

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


def runner_of(config: RunSettings, tuner: FineTuner) -> Runner:
    """The fine-tuner in the form that was asked for."""
    if config.parallel == "sharded":
        return gft.parallel.sharded(tuner, gft.parallel.mesh(fsdp=config.fsdp))
    return gft.parallel.pmapped(tuner) if config.parallel == "pmap" else gft.parallel.single_device(tuner)

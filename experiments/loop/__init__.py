"""The training loop of one method and seed: chunks of steps, log, evaluations, checkpoints, resume, preemption."""

from experiments.loop.guard import Stopped, check_finite
from experiments.loop.kept import found, keep
from experiments.loop.preemption import Preempted
from experiments.loop.training import Loop, Watch

__all__ = ["Loop", "Preempted", "Stopped", "Watch", "check_finite", "found", "keep"]

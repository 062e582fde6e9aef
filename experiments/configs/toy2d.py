"""Gradual fine-tuning of a flow in the plane, from one law to another, with pictures of what moves.

python -m experiments.train toy2d
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.configs.settings import MethodName, Settings, require
from experiments.data.shifted import ShiftedData
from experiments.data.toy2d import MAX_TARGET, Law, shifted_laws


@dataclass(frozen=True)
class Toy2d(Settings):
    """Pretrain a flow on a law in the plane, adapt it to another by several methods, and show how samples move.

    The base is kept and used again by the next run with the same settings of it. Results go to a fresh numbered
    folder runs/toy2d/NNN; open its report.html.
    """

    source: Law = "8-gaussians"
    """Law to pretrain on."""
    target: Law = "moons"
    """Law to fine-tune on, another than the source."""
    num_target: int = 1000
    """Number of points to fine-tune on, 1 to 10000; 512 others are held out for evaluation.
    With a single one there is no early-stopped score, which takes the distance to the law of these points."""
    methods: tuple[MethodName, ...] = ("gradual-linear", "plain", "from-scratch")
    """Methods to compare, in the order of the report."""
    steps: int = 1500
    """Steps of fine-tuning."""
    learning_rate: float = 3e-4
    """Learning rate (Adam) of fine-tuning."""
    batch_size: int = 256
    """Rows per step."""
    base_learning_rate: float = 3e-3
    """Peak learning rate (Adam, cosine decay) of pretraining; also the learning rate of from-scratch."""
    hidden: int = 64
    """Width of the drift network."""
    depth: int = 3
    """Residual blocks of the drift network."""

    experiment: ClassVar[str] = "toy2d"

    def check(self) -> None:
        """Refuses settings that cannot work."""
        super().check()
        require(self.source != self.target, "target", self.target, "another law than the source")
        require(1 <= self.num_target <= MAX_TARGET, "num_target", self.num_target, f"1 to {MAX_TARGET}")

    def data(self) -> ShiftedData:
        """Points of both laws, ``[num, 2]``."""
        return shifted_laws(self.source, self.target, self.num_target)

    def facts(self) -> dict[str, Any]:
        """What one sample is."""
        return {"samples_are": "points"}

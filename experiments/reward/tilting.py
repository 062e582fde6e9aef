"""Tilted laws ``p(x) exp(r(x) / lam)``, from many points of p with weights."""

from typing import NamedTuple

import numpy as np
from scipy import optimize

LEAST_EFFECTIVE = 1000.0
"""Effective points below which a tilted law is not known well enough."""
_SEED = 20_260_801


class TiltedLaws(NamedTuple):
    """Points of a law, and their rewards; weights ``exp(r / lam)`` make them points of a tilted one."""

    points: np.ndarray
    """``[num, *event]``."""
    rewards: np.ndarray
    """``[num]``."""

    def weights(self, strength: float) -> np.ndarray:
        """Weights of the points for lam, which add up to one."""
        weights = np.exp((self.rewards - self.rewards.max()) / strength)
        return weights / weights.sum()

    def mean_reward(self, strength: float) -> float:
        """Mean reward of the law for lam."""
        return float(self.weights(strength) @ self.rewards)

    def draw(self, strength: float, num: int) -> np.ndarray | None:
        """Points ``[num, *event]`` of the law for lam, by systematic resampling, always the same ones.

        None where the weights leave fewer than `LEAST_EFFECTIVE` effective points, ``1 / sum of squares``.
        """
        weights = self.weights(strength)
        if 1.0 / np.sum(weights**2) < LEAST_EFFECTIVE:
            return None
        generator = np.random.default_rng(_SEED)
        at = (generator.uniform() + np.arange(num)) / num
        index = np.searchsorted(np.cumsum(weights), at).clip(max=len(weights) - 1)
        return self.points[index]

    def strength_of(self, reward: float) -> float | None:
        """The lam > 0 at which the tilted law has this mean reward; None where there is none that is known well."""

        def excess(log_strength: float) -> float:
            return self.mean_reward(np.exp(log_strength)) - reward

        low, high = np.log(1e-3), np.log(1e3)
        if not excess(low) > 0 > excess(high):
            return None
        return float(np.exp(optimize.root_scalar(excess, bracket=(low, high), xtol=1e-4).root))

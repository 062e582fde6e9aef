"""The laws ``q^w p^(1 - w)`` between two laws in the plane, at which the terminal objective aims."""

import numpy as np

from experiments.data.toy2d import Law, log_density

_EXTENT = 6.0
_NUM_CELLS = 400
_SEED = 20_261_123


class TemperedLaws:
    """Draws from ``q^w p^(1 - w)`` by way of a fine grid, whose cells are 0.03 wide."""

    def __init__(self, source: Law, target: Law):
        """The logarithms of both densities on the grid.

        Args:
            source: p.
            target: q.
        """
        side = 2 * _EXTENT / _NUM_CELLS
        centres = -_EXTENT + side * (np.arange(_NUM_CELLS) + 0.5)
        self._side = side
        self._cells = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
        # A row of the grid at a time: a law is a mixture of many.
        rows = np.split(self._cells, _NUM_CELLS)
        self._source, self._target = (
            np.concatenate([log_density(law, row) for row in rows]) for law in (source, target)
        )

    def draw(self, weight: float, num: int) -> np.ndarray:
        """Independent points ``[num, 2]`` of the law for w in [0, 1], always the same ones.

        Independent, and not spread evenly over the law: an unbiased energy distance takes them to be so.
        """
        with np.errstate(invalid="ignore"):  # 0 times the logarithm of 0 is left out
            logs = np.where(weight > 0, weight * self._target, 0) + np.where(
                weight < 1, (1 - weight) * self._source, 0
            )
        density = np.exp(logs - logs.max())
        generator = np.random.default_rng(_SEED)
        total = np.cumsum(density)
        index = np.searchsorted(total / total[-1], generator.uniform(size=num)).clip(max=len(total) - 1)
        within = generator.uniform(-0.5, 0.5, (num, 2)) * self._side
        return (self._cells[index] + within).astype(np.float32)

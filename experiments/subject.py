"""What the report cards of a run have in common: its data, and how it is sampled and compared."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import diffrax
import numpy as np

from experiments.configs.few_steps import FewSteps
from experiments.configs.settings import Settings
from experiments.data.shifted import ShiftedData
from experiments.few_steps.methods import NO_PATH_KL
from experiments.methods import PATHS, coupling_of
from gft_jax.couplings import Coupling
from gft_jax.evaluation import Measure
from gft_jax.loading import Loaded
from gft_jax.pairing import Source
from gft_jax.paths import Path
from gft_jax.types import Drift, Params


class Subject(NamedTuple):
    """A run as its cards see it; one for all methods, so that what was compiled for the first serves the others."""

    data: ShiftedData
    drift: Drift
    """The drift that is sampled; of methods with an average velocity their own."""
    num_steps: int
    """Of the run's own evaluations."""
    path: Path | None
    """Of training, for the path KL."""
    coupling: Coupling | None
    solver: diffrax.AbstractSolver = diffrax.Euler()
    controller: diffrax.AbstractStepSizeController | None = None
    tolerance: float | None = None
    """Of the controller."""
    source: Source | None = None
    """Draws the noise of the run's own evaluations; None for other noise."""
    score: Drift | None = None
    """Of the drift, where there is a source."""
    features: Callable[[Any], Any] | None = None
    rows_at_once: int | None = None
    calls: int = 1
    """Calls of the network for an evaluation of the drift."""
    no_path_kl: str | None = None
    """Why there is none; None where it is tried."""
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = MappingProxyType({})
    """Of how it is sampled and compared, for card.json."""
    averages: bool = True
    """Whether methods with an average velocity are judged by it, too."""
    own_scores: Callable[[Params], tuple[Measure, ...]] = lambda params: ()
    """What the run itself scores."""

    def labels(self, num: int) -> np.ndarray | None:
        """Classes of so many samples: those of the held-out data; None without."""
        return None if self.data.labels is None else np.resize(self.data.labels.held_out, num)


def subject_of(settings: Settings, base: Loaded) -> Subject:
    """A run whose network is told no classes.

    Args:
        settings: of the run.
        base: its base.
    """
    if isinstance(settings, FewSteps):
        data, num_steps = settings.data(), settings.sampling_steps
        return Subject(data, base.drift, num_steps, None, None, no_path_kl=NO_PATH_KL)
    path = PATHS[settings.path]().path
    coupling = coupling_of(settings.coupling, base.drift, base.params)
    return Subject(settings.data(), base.drift, settings.sampling_steps, path, coupling)

"""A trace of some steps, for TensorBoard and Perfetto."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax


class Trace:
    """The trace of a range of steps, rounded outwards to whole chunks.

    ``FOLDER/plugins/profile/TIME`` then holds ``*.xplane.pb``, for ``tensorboard --logdir FOLDER`` (with its profile
    plugin), and ``*.trace.json.gz``, for ui.perfetto.dev. Each chunk is a step named "train" in it.

    Args:
        folder: where the trace goes; made when it is written.
        steps: first step, and the one after the last; None traces nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._running = folder, steps, False

    def chunk(self, step: int, count: int) -> AbstractContextManager[object]:
        """What a chunk that begins at a step has to run in; its results must have arrived when it is left."""
        if self._steps is None:
            return nullcontext()
        first, end = self._steps
        if not self._running and step < end and step + count > first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python's own calls are many, and hide the steps
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int) -> Path | None:
        """Called with the number of steps done; the folder, if the trace was just written to it."""
        if self._running and self._steps is not None and step >= self._steps[1]:
            return self.close()
        return None

    def close(self) -> Path | None:
        """Writes what there is; the folder, if there was anything."""
        if not self._running:
            return None
        self._running = False
        jax.profiler.stop_trace()
        return self._folder

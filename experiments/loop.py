"""The training loop of one method and seed: chunks of steps, log, evaluations, checkpoints, resume."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.evaluator import Evaluate
from experiments.run_folder import RunFolder
from gft_jax.checkpoints import Checkpoints, Unreadable, has_params, load_params, save_params, set_aside
from gft_jax.cooling import effective_target_weight, target_weight
from gft_jax.finetuning import StepInfo, TrainState
from gft_jax.loading import params_folder
from gft_jax.metrics import NotFinite
from gft_jax.pairing import Batches, ahead
from gft_jax.parallel import Runner
from gft_jax.types import Params

MAX_CHUNKS_PER_CHECKPOINT = 10

Watch = Callable[[int, np.ndarray], dict[str, float]]
"""Is told the step and the samples of an evaluation, before it is logged; what it returns is added to the scores."""


class Stopped(Exception):
    """A run that cannot go on; the message says why, and what to do."""


def check_finite(infos: StepInfo, step: int, what: str, advice: str) -> None:
    """Stops a run whose loss or gradient was not finite.

    Raises:
        Stopped: naming the first such step.
    """
    bad = np.flatnonzero(~np.asarray(infos.is_finite))
    if len(bad):
        first = int(bad[0])
        raise Stopped(
            f"{what}: loss or gradient is not finite at step {step + first + 1} (loss {infos.loss[first]}, gradient "
            f"norm {infos.grad_norm[first]}); {advice}"
        )


class Loop(NamedTuple):
    """Training of one method and seed, in chunks of steps, each followed by an evaluation."""

    run: RunFolder
    method: str
    seed: int
    runner: Runner
    stream: Batches
    num_steps: int
    chunk: int
    """Steps between two evaluations."""
    rate_flag: str
    """The flag that sets the learning rate of this method."""
    evaluated: Callable[[Params, Params], Params]
    """``(params, base_params)`` -> the parameters that are evaluated and kept."""
    shows_progress: bool = True
    """Whether to draw a progress bar."""
    check: Callable[[StepInfo, int, str, str], None] = check_finite
    """Stops a run that cannot go on, by `Stopped`; called after each chunk."""
    diagnose: Callable[[Mapping[str, Any]], dict[str, float]] = lambda stats: {}
    """Diagnostics of the objective by name, each ``[steps]`` of a chunk -> what is logged of them."""
    diagnoses_coupling: bool = False
    """Whether diagnostics of the pairing are logged, at the first step and with each checkpoint."""

    def train(
        self,
        base_params: Params,
        params: Params | None,
        evaluate: Evaluate,
        watch: Watch | None = None,
    ) -> Params:
        """Final parameters, as evaluated: trained now, continued from the last checkpoint, or found finished.

        Args:
            base_params: the pretrained parameters.
            params: where training starts; None for the base.
            evaluate: scores parameters; it is given what ``evaluated`` makes of the raw ones, not the average.
            watch: sees every evaluation.

        Raises:
            Stopped: if loss, gradient or samples are not finite; the last checkpoint stays.
        """
        name = f"{self.method} (seed {self.seed})"
        chunks_per_checkpoint = max(1, min(MAX_CHUNKS_PER_CHECKPOINT, self.num_steps // self.chunk // 4))
        state = self.runner.init(jax.random.key(self.seed), base_params, params)
        final, averaged = (
            params_folder(self.run.path, self.method, self.seed, averaged=which) for which in (False, True)
        )
        finished = [found(folder, state.params) for folder in (final, averaged)]
        if None not in finished:
            print(f"{name}: finished before")
            return finished[0]
        host_base, base_params = base_params, self.runner.place(base_params)
        shown = jax.jit(self.evaluated)

        def score(state: TrainState, step: int) -> dict[str, float]:
            scores, samples = evaluate(shown(self.runner.fetch(state.params), host_base))
            return scores if watch is None else scores | watch(step, samples)

        with (
            Checkpoints(self.run.path / "checkpoints" / final.name) as checkpoints,
            # The next chunk is paired while this one is trained on and evaluated.
            ahead(self.stream, depth=1, num_steps=self.num_steps) as stream,
        ):
            state, clock = self._start_or_continue(checkpoints, state, score)
            step = int(state.step)
            bar = tqdm(
                total=self.num_steps, initial=step, desc=name, unit="step", disable=not self.shows_progress
            )
            kept = checkpoints.latest_step()
            while step < self.num_steps:
                started = time.perf_counter()
                batches = stream.many(step, self.chunk)
                state, infos = self.runner.step_many(state, base_params, batches)
                infos = jax.device_get(infos)
                clock.add(time.perf_counter() - started, self.chunk)
                advice = (
                    f"start a run with a lower {self.rate_flag}"
                    if kept is None
                    else f"the checkpoint of step {kept} is kept; start a run with a lower {self.rate_flag}"
                )
                self.check(infos, step, name, advice)
                step += self.chunk
                self.run.log([self._train_row(step, infos)])
                try:
                    self.run.log([self._row("evaluation", step=step, **score(state, step))])
                except NotFinite as error:
                    raise Stopped(
                        f"{name}: evaluation after step {step} failed: {error}; {advice}"
                    ) from error
                if step % (self.chunk * chunks_per_checkpoint) == 0 or step == self.num_steps:
                    self._log_coupling(step)
                    checkpoints.save(step, self.runner.fetch(state), {"clock": clock.reading()})
                    kept = step
                bar.set_postfix(
                    loss=f"{infos.loss.mean():.2f}", temperature=f"{infos.temperature[-1]:.3g}", refresh=False
                )
                bar.update(self.chunk)
            bar.close()
        self.run.log([self._row("timing", **clock.reading())])
        keep(averaged, shown(self.runner.fetch(state.averaged_params), host_base))
        params = shown(self.runner.fetch(state.params), host_base)
        keep(final, params)
        return params

    def _start_or_continue(
        self,
        checkpoints: Checkpoints,
        state: TrainState,
        score: Callable[[TrainState, int], dict[str, float]],
    ) -> tuple[TrainState, "Clock"]:
        name = f"{self.method} (seed {self.seed})"
        try:
            restored, metadata = checkpoints.restore(state)
        except FileNotFoundError:
            restored, metadata = None, {}
        for skipped in checkpoints.skipped:
            tqdm.write(f"{name}: passed over a checkpoint that was cut short or damaged: {skipped}")
        if restored is None:
            if checkpoints.skipped:
                tqdm.write(f"{name}: no checkpoint can be restored; starts at step 0")
            self.run.rewind(self.method, self.seed, -1)
            self.run.log([self._row("evaluation", step=0, **score(state, 0))])
            self._log_coupling(0)
            return state, Clock()
        self.run.rewind(self.method, self.seed, int(restored.step))
        tqdm.write(f"{name}: continues at step {int(restored.step)}")
        return self.runner.place(restored), Clock(**metadata["clock"])

    def _log_coupling(self, step: int) -> None:
        if self.diagnoses_coupling:
            found = self.stream.diagnose(step)._asdict()
            row = {name: float(value) for name, value in found.items()} | {
                "converged": bool(found["converged"])
            }
            self.run.log([self._row("coupling", step=step, **row)])

    def _row(self, kind: str, **values: Any) -> dict[str, Any]:
        return {"kind": kind, "method": self.method, "seed": self.seed, **values}

    def _train_row(self, step: int, infos: StepInfo) -> dict[str, Any]:
        squared, along = (
            np.mean(infos.stats.get(name, 0.0))
            for name in ("displacement_squared", "displacement_along_target")
        )
        reached = float(effective_target_weight(squared, along))
        return self._row(
            "train",
            step=step,
            loss=float(infos.loss.mean()),
            temperature=float(infos.temperature[-1]),
            target_weight=float(np.mean(target_weight(infos.temperature))),
            effective_target_weight=reached if squared > 0 else None,
            grad_norm=float(infos.grad_norm.mean()),
            **self.diagnose(infos.stats),
        )


class Clock:
    """Time of the training steps alone, without the first chunk of a process, which compiles."""

    def __init__(self, seconds: float = 0.0, steps: int = 0):
        self._seconds, self._steps, self._warm = seconds, steps, False

    def add(self, seconds: float, steps: int) -> None:
        """Counts one chunk."""
        if self._warm:
            self._seconds, self._steps = self._seconds + seconds, self._steps + steps
        self._warm = True

    def reading(self) -> dict[str, Any]:
        """Seconds, and the steps that they are of."""
        return {"seconds": self._seconds, "steps": self._steps}


def found(folder: Path, like: Params) -> Params | None:
    """Parameters kept before, or None; those that cannot be read are set aside, and this is said."""
    if not has_params(folder):
        return None
    try:
        return load_params(folder, like)
    except Unreadable as error:
        tqdm.write(f"{error}: it is now {set_aside(folder)}, and made again")
        return None


def keep(folder: Path, params: Params) -> None:
    """Saves parameters unless they are there already, from before or from a run at the same time."""
    if has_params(folder):
        return
    if folder.is_dir() and any(folder.iterdir()):
        tqdm.write(f"{folder} was cut short or damaged; it is set aside, and made again")
    with suppress(FileExistsError):
        save_params(folder, params)

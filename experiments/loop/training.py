"""The loop itself."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.evaluator import Evaluate
from experiments.loop import guard, preemption
from experiments.loop.clock import Clock, budget
from experiments.loop.guard import Stopped
from experiments.loop.kept import found, keep
from experiments.loop.preemption import Preempted
from experiments.loop.profiling import Trace
from experiments.loop.rows import Diagnose, train_rows
from experiments.run_folder import RunFolder
from gft_jax.checkpoints import Best, Checkpoints
from gft_jax.finetuning import StepInfo, TrainState
from gft_jax.loading import CheckpointName, params_folder
from gft_jax.metrics import NotFinite
from gft_jax.pairing import Batches, ahead
from gft_jax.parallel import Runner
from gft_jax.types import Batch, Objective, Params

MAX_CHUNKS_PER_CHECKPOINT = 10

Watch = Callable[[int, np.ndarray], dict[str, float]]
"""Is told the step and the samples of an evaluation, before it is logged; what it returns is added to the scores."""


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
    scores_average: bool = False
    """Whether the averaged parameters are scored, and the best checkpoint chosen by them, instead of the raw ones."""
    shows_progress: bool = True
    """Whether to draw a progress bar."""
    check: Callable[[StepInfo, int, str, str], None] | None = None
    """Stops a run that cannot go on for a reason of its own, by `Stopped`; called after each chunk."""
    diagnose: Diagnose = lambda stats: {}
    """Diagnostics of the objective by name, each ``[steps]`` of a chunk -> what is logged of them."""
    diagnoses_coupling: bool = False
    """Whether diagnostics of the pairing are logged, at the first step and with each checkpoint."""
    objective: Objective | None = None
    """Names the rows and flow times of a loss that is not finite; None leaves them unnamed."""
    best: Best | None = None
    """The score by which the best checkpoint is kept; None keeps none."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints, a multiple of ``chunk``; None: at most ten chunks, and so that there are four."""
    keep_every: int | None = None
    """Checkpoints of multiples of this step are kept; None: of the others the newest two alone."""
    log_every: int | None = None
    """Steps of one row of the log, a divisor of ``chunk``; None: those of a chunk."""
    skips: int = 0
    """Batches whose loss or gradient is not finite that may be left out in the run."""
    profile: tuple[int, int] | None = None
    """First step, and the one after the last, of which a trace is written."""

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
            evaluate: scores parameters; it is given what ``evaluated`` makes of the raw ones, or of the average
                where that is scored.
            watch: sees every evaluation.

        Raises:
            Stopped: if loss, gradient or samples are not finite; the last checkpoint stays.
            Preempted: if a SIGTERM came; a checkpoint was saved after the chunk that was under way.
            OSError: if log or checkpoint cannot be written; the last checkpoint stays.
        """
        name = self._name()
        state = self.runner.init(jax.random.key(self.seed), base_params, params)
        final, averaged = (self._params_folder(averaged=which) for which in (False, True))
        # On one device, as those that are trained now are returned.
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
        finished = [found(final, shapes.params), found(averaged, shapes.averaged_params)]
        if None not in finished:
            print(f"{name}: finished before")
            return finished[1 if self.scores_average else 0]
        if preemption.requested():
            raise Preempted(f"before {name} was begun in this session")
        placed_base, shown = self.runner.place(base_params), jax.jit(self.evaluated)

        def shown_of(params: Params) -> Params:
            return shown(self.runner.fetch(params), base_params)

        def score(state: TrainState, step: int) -> dict[str, float]:
            scores, samples = evaluate(shown_of(self._scored(state)))
            return scores if watch is None else scores | watch(step, samples)

        with ExitStack() as stack:
            folder = self.run.path / "checkpoints" / final.name
            checkpoints = stack.enter_context(
                Checkpoints(folder, keep_best=self.best, keep_every=self.keep_every)
            )
            # The next chunk is paired while this one is trained on and evaluated.
            stream = stack.enter_context(ahead(self.stream, depth=1, num_steps=self.num_steps))
            trace = Trace(self.run.path / "profile" / final.name, self.profile)
            stack.callback(trace.close)
            state, clock, skipped = self._start_or_continue(checkpoints, state, score)
            step = int(state.step)
            bar = stack.enter_context(
                tqdm(
                    total=self.num_steps,
                    initial=step,
                    desc=name,
                    unit="step",
                    disable=not (self.shows_progress and self.run.is_writer),
                )
            )
            kept, every = checkpoints.latest_step(), self._checkpoint_every()
            while step < self.num_steps:
                with clock.timing("data"):
                    batches = stream.many(step, self.chunk)
                with clock.timing("steps"), trace.chunk(step, self.chunk):
                    state, infos = self.runner.step_many(state, placed_base, batches)
                    infos = jax.device_get(infos)
                clock.add_chunk(self.chunk)
                advice = self._advice(kept)
                if self.check is not None:
                    self.check(infos, step, name, advice)
                skipped += self._skip_or_stop(infos, step, skipped, (state, base_params, batches), advice)
                step += self.chunk
                written = trace.end(step)
                if written is not None:
                    tqdm.write(f"{name}: trace up to step {step} in {written}")
                self.run.log(self.train_rows(infos, step))
                with clock.timing("evaluation"):
                    try:
                        scores = score(state, step)
                    except NotFinite as error:
                        raise Stopped(
                            f"{name}: evaluation after step {step} failed: {error}; {advice}"
                        ) from error
                self.run.log([self._row("evaluation", step=step, **scores)])
                is_due = step % every == 0 or step == self.num_steps
                is_preempted = step < self.num_steps and preemption.requested()
                if is_due:
                    with clock.timing("evaluation"):
                        self._log_coupling(step)
                if is_due or is_preempted:
                    with clock.timing("checkpoints"):
                        metadata = {"clock": clock.reading(), "skipped": skipped}
                        metrics = None if self.best is None else {self.best.metric: scores[self.best.metric]}
                        checkpoints.save(step, state, metadata, metrics)
                    kept = step
                if is_preempted:
                    checkpoints.wait()
                    self.run.log([self._row("preempted", step=step)])
                    raise Preempted(f"{name} is saved at step {step}")
                bar.set_postfix(
                    loss=f"{infos.loss.mean():.2f}", temperature=f"{infos.temperature[-1]:.3g}", refresh=False
                )
                bar.update(self.chunk)
            with clock.timing("checkpoints"):
                checkpoints.wait()
                self._keep_best(checkpoints, state, shown_of)
        reading = clock.reading()
        self.run.log([self._row("timing", **reading)])
        tqdm.write(f"{name}: {budget(reading)}" + (f"; {skipped} batches left out" if skipped else ""))
        kept = {final: shown_of(state.params), averaged: shown_of(state.averaged_params)}
        for folder in (averaged, final):
            keep(folder, kept[folder])
        return kept[averaged if self.scores_average else final]

    def _scored(self, state: TrainState) -> Params:
        return state.averaged_params if self.scores_average else state.params

    def _name(self) -> str:
        return f"{self.method} (seed {self.seed})"

    def _params_folder(self, averaged: bool = False, checkpoint: CheckpointName = "final") -> Path:
        return params_folder(self.run.path, self.method, self.seed, averaged, checkpoint)

    def _checkpoint_every(self) -> int:
        if self.checkpoint_every is not None:
            return self.checkpoint_every
        return self.chunk * max(1, min(MAX_CHUNKS_PER_CHECKPOINT, self.num_steps // self.chunk // 4))

    def _advice(self, kept: int | None) -> str:
        advice = f"start a run with a lower {self.rate_flag}"
        return advice if kept is None else f"the checkpoint of step {kept} is kept; {advice}"

    def _start_or_continue(
        self,
        checkpoints: Checkpoints,
        state: TrainState,
        score: Callable[[TrainState, int], dict[str, float]],
    ) -> tuple[TrainState, Clock, int]:
        """State, clock, and the number of batches left out so far."""
        name = self._name()
        try:
            restored, metadata = checkpoints.restore(state)
        except FileNotFoundError:
            restored, metadata = None, {}
        for cut in checkpoints.skipped:
            tqdm.write(f"{name}: passed over a checkpoint that was cut short or damaged: {cut}")
        if restored is None:
            if checkpoints.skipped:
                tqdm.write(f"{name}: no checkpoint can be restored; starts at step 0")
            self.run.rewind(self.method, self.seed, -1)
            clock = Clock()
            with clock.timing("evaluation"):
                self.run.log([self._row("evaluation", step=0, **score(state, 0))])
                self._log_coupling(0)
            return state, clock, 0
        self.run.rewind(self.method, self.seed, int(restored.step))
        tqdm.write(f"{name}: continues at step {int(restored.step)}")
        return restored, Clock(**metadata["clock"]), metadata.get("skipped", 0)

    def _skip_or_stop(
        self,
        infos: StepInfo,
        step: int,
        skipped: int,
        inputs: tuple[TrainState, Params, Batch],
        advice: str,
    ) -> int:
        """Number of steps of a chunk that were left out since they were not finite; each is logged.

        Raises:
            Stopped: if these are more than are allowed.
        """
        bad = guard.not_finite(infos)
        if not len(bad):
            return 0
        # A session may allow fewer than those before it have left out.
        found = [
            guard.describe(infos, step, int(index), self._where(inputs, infos, int(index)))
            for index in bad[: max(self.skips - skipped, 0) + 1]
        ]
        if skipped + len(bad) > self.skips:
            allowed = f"; {self.skips} batches were allowed to be left out" if self.skips else ""
            raise Stopped(f"{self._name()}: {found[-1].text}{allowed}; {advice}")
        self.run.log([self._row("skipped", step=each.step, reason=each.text) for each in found])
        for each in found:
            tqdm.write(f"{self._name()}: left out a batch: {each.text}")
        return len(bad)

    def _where(self, inputs: tuple[TrainState, Params, Batch], infos: StepInfo, index: int) -> str:
        if self.objective is None or jax.process_count() > 1:
            return ""
        state, base_params, batches = inputs
        batch = jax.tree.map(lambda leaf: leaf[index], batches)
        temperature = infos.temperature[index]
        return guard.where_not_finite(
            self.objective, self.runner.fetch(state), base_params, self.runner.fetch(batch), temperature
        )

    def _keep_best(
        self, checkpoints: Checkpoints, state: TrainState, shown_of: Callable[[Params], Params]
    ) -> None:
        """Keeps the parameters of the best checkpoint, which is restored unless it is the last."""
        step = None if self.best is None else checkpoints.best_step()
        if step is None:
            return
        best = state if step == self.num_steps else checkpoints.restore(state, step)[0]
        keep(self._params_folder(checkpoint="best"), shown_of(self._scored(best)))
        self.run.log([self._row("best", best_step=step)])

    def _log_coupling(self, step: int) -> None:
        if self.diagnoses_coupling:
            found = self.stream.diagnose(step)._asdict()
            row = {name: float(value) for name, value in found.items()} | {
                "converged": bool(found["converged"])
            }
            self.run.log([self._row("coupling", step=step, **row)])

    def _row(self, kind: str, **values: Any) -> dict[str, Any]:
        return {"kind": kind, "method": self.method, "seed": self.seed, **values}

    def train_rows(self, infos: StepInfo, step: int) -> list[dict[str, Any]]:
        """What is logged of a chunk that ends at a step."""
        every = len(infos.loss) if self.log_every is None else self.log_every
        return [self._row("train", **row) for row in train_rows(infos, step, every, self.diagnose)]

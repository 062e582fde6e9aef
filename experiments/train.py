"""The training program: pretrain a flow, adapt it to new data by several methods, compare them.

python -m experiments.train digits --help
"""

import difflib
import functools
import io
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro

import gft_jax as gft
from experiments.base_flow import pretrained_base
from experiments.configs.digits import Digits, MethodName
from experiments.data.digits import CLASSES, shifted_digits
from experiments.evaluator import evaluator, floor
from experiments.files import write_atomically
from experiments.loop import Loop, Stopped, keep
from experiments.methods import COUPLINGS, METHODS, PATHS
from experiments.report import write_report
from experiments.run_folder import RunFolder, open_run
from experiments.summary import read_metrics, render_text, summarise
from gft_jax.checkpoints import has_params, load_params
from gft_jax.loading import describe_model, init_params, params_folder
from gft_jax.parallel import Runner

EXPERIMENTS = {"digits": Digits}
ROOT = Path("runs")
NUM_SAMPLES_KEPT = 64


def main() -> int:
    """Runs the experiment named on the command line; returns the exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name and not name.startswith("-") and name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        print(
            f"error: unknown experiment {name!r}. {hint}There are: {', '.join(EXPERIMENTS)}", file=sys.stderr
        )
        return 2
    config = tyro.extras.subcommand_cli_from_dict(
        EXPERIMENTS, prog="python -m experiments.train", description=__doc__
    )
    try:
        config.check()
        run_digits(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(
            f"stopped: {error}. `python -m experiments.report` on the run folder shows how far it came",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues", file=sys.stderr)
        return 130
    return 0


def run_digits(config: Digits) -> None:
    """Pretrains (or finds) the base, fine-tunes it by every method and seed, evaluates, and writes the report."""
    started = time.perf_counter()
    num_devices = jax.local_device_count() if config.parallel == "pmap" else 1
    if config.batch_size % (num_devices * config.base_every):
        raise ValueError(
            f"--batch-size is {config.batch_size}; with {num_devices} devices and --base-every {config.base_every} it "
            f"must be a multiple of {num_devices * config.base_every}"
        )
    data = shifted_digits(config.shift, config.num_target)
    timed_path = PATHS[config.path]()
    module = gft.networks.ResidualMLP(hidden=config.hidden, depth=config.depth)
    drift = gft.drifts.from_linen(module)
    event_shape = data.base.shape[1:]

    facts = {
        "methods": list(config.methods),
        "seeds": list(config.seeds),
        "base_classes": CLASSES[config.shift][0],
        "target_classes": CLASSES[config.shift][1],
        "num_evaluations": config.sampling_steps,
    }
    run = open_run(config, ROOT / "digits", facts)
    print(f"run folder: {run.path}")
    describe_model(run.path, module, event_shape)
    own_base = params_folder(run.path, "base")
    if has_params(own_base):  # a resumed run goes on with the base that it began with
        base_params = load_params(own_base, init_params(module, jax.random.key(0), event_shape))
    else:
        base_params = pretrained_base(config, data.base, module, drift, timed_path, ROOT / "digits" / "base")
        keep(own_base, base_params)
    evaluate = evaluator(drift, data.held_out, config.sampling_steps)

    @functools.cache  # one compiled step for all seeds of a method
    def runner_of(name: MethodName) -> Runner:
        method = METHODS[name](config, drift, timed_path)
        tuner = gft.finetuner(method.objective, optax.adam(method.learning_rate), method.cooling)
        parallel = {"single": gft.parallel.single_device, "pmap": gft.parallel.pmapped}
        return parallel[config.parallel](tuner)

    base_scores, base_samples = evaluate(base_params)
    samples = {"real": data.held_out, "base": base_samples}
    first = config.seeds[0]  # base and floor are the same for all seeds
    run.log_once({"kind": "floor", "seed": first, **floor(data.held_out, data.fresh)})
    run.log_once({"kind": "evaluation", "method": "base", "seed": first, "step": 0, **base_scores})
    for seed in config.seeds:
        stream = gft.pairing.batches(
            data.target, batch_size=config.batch_size, seed=seed, coupling=COUPLINGS[config.coupling]()
        )
        pairing = stream.pairing(0)
        if not pairing.converged:
            error = float(pairing.marginal_error)
            raise Stopped(
                f"the {config.coupling} coupling does not converge on this data (marginal error {error:.2g})"
            )
        for name in config.methods:
            from_base = METHODS[name](config, drift, timed_path).from_base
            fresh = None if from_base else init_params(module, jax.random.key(seed), event_shape)
            rate_flag = "--learning-rate" if from_base else "--base-learning-rate"
            loop = Loop(run, name, seed, runner_of(name), stream, config.steps, config.eval_every, rate_flag)
            params = loop.train(base_params, fresh, evaluate)
            if seed == first:
                samples[name] = evaluate(params)[1]

    kept: dict[str, Any] = {name: x[:NUM_SAMPLES_KEPT] for name, x in samples.items()}
    content = io.BytesIO()
    np.savez(content, **kept)
    write_atomically(run.path / "samples.npz", content.getvalue())
    finish(run, started)


def finish(run: RunFolder, started: float) -> None:
    """Notes the time taken, writes the report and prints the table."""
    run.add_session(round(time.perf_counter() - started, 1))
    report = write_report(run.path)
    print(render_text(summarise(read_metrics(run.path))))
    print(f"report: {report}")


if __name__ == "__main__":
    sys.exit(main())

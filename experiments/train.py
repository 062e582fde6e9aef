"""The training program: pretrain a flow, adapt it to new data by several methods, compare them.

python -m experiments.train digits --help
"""

import difflib
import io
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.base_flow import pretrained_base
from experiments.configs.digits import Digits
from experiments.configs.settings import Settings
from experiments.evaluator import evaluator, floor
from experiments.files import write_atomically
from experiments.loop import Stopped, keep
from experiments.report import write_report
from experiments.run_folder import RunFolder, open_run
from experiments.summary import read_metrics, render_text, summarise
from experiments.workbench import Workbench
from gft_jax.checkpoints import has_params, load_params
from gft_jax.loading import describe_model, params_folder

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
        run(config)
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


def run(config: Settings) -> None:
    """Pretrains (or finds) the base, fine-tunes it by every method and seed, evaluates, and writes the report."""
    started = time.perf_counter()
    num_devices = jax.local_device_count() if config.parallel == "pmap" else 1
    if config.batch_size % (num_devices * config.base_every):
        raise ValueError(
            f"--batch-size is {config.batch_size}; with {num_devices} devices and --base-every {config.base_every} it "
            f"must be a multiple of {num_devices * config.base_every}"
        )
    data = config.data()
    root = ROOT / config.experiment
    facts = {"methods": list(config.methods), "seeds": list(config.seeds), **config.facts()}
    folder = open_run(config, root, facts | {"num_evaluations": config.sampling_steps})
    print(f"run folder: {folder.path}")
    bench = Workbench(config, data)
    describe_model(folder.path, bench.module, data.base.shape[1:])
    own_base = params_folder(folder.path, "base")
    if has_params(own_base):  # a resumed run goes on with the base that it began with
        base_params = load_params(own_base, bench.fresh_params(0))
    else:
        base_params = pretrained_base(config, data.base, bench.module, bench.drift, bench.path, root / "base")
        keep(own_base, base_params)

    evaluate = evaluator(bench.drift, base_params, data, bench.path, config.sampling_steps)
    base_scores, base_samples = evaluate(base_params)
    samples = {"real": data.held_out, "base": base_samples}
    first = config.seeds[0]  # base and floor are the same for all seeds
    folder.log_once({"kind": "floor", "seed": first, **floor(data)})
    folder.log_once({"kind": "evaluation", "method": "base", "seed": first, "step": 0, **base_scores})
    for seed in config.seeds:
        for name in config.methods:
            params = bench.loop(folder, name, seed, base_params).train(
                base_params, None if bench.method(name).from_base else bench.fresh_params(seed), evaluate
            )
            if seed == first:
                samples[name] = evaluate(params)[1]

    kept: dict[str, Any] = {name: x[:NUM_SAMPLES_KEPT] for name, x in samples.items()}
    content = io.BytesIO()
    np.savez(content, **kept)
    write_atomically(folder.path / "samples.npz", content.getvalue())
    finish(folder, started)


def finish(run: RunFolder, started: float) -> None:
    """Notes the time taken, writes the report and prints the table."""
    run.add_session(round(time.perf_counter() - started, 1))
    report = write_report(run.path)
    print(render_text(summarise(read_metrics(run.path))))
    print(f"report: {report}")


if __name__ == "__main__":
    sys.exit(main())

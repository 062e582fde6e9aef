"""The study of gradual fine-tuning on shifted digits: many runs in one process, one table, one page.

    python -m experiments.study digits

Two to three hours on two CPU cores with the defaults; interrupted, the same command with --resume continues. The
runs go to runs/study/digits; `python -m experiments.study.report runs/study/digits` makes table, figures and page
again, also of a study that has not finished.
"""

import sys
from pathlib import Path

import tyro
from tqdm import tqdm

from experiments.devices import check_devices
from experiments.files import remove_folder
from experiments.loop import Preempted, Stopped, preemption
from experiments.run_folder import open_run
from experiments.study.plan import Group, Study, groups
from experiments.study.report import write_study
from experiments.summary import read_metrics
from experiments.workbench import Workbench
from gft_jax.checkpoints import has_params
from gft_jax.loading import params_folder


def run_study(study: Study) -> None:
    """Runs what is not finished yet, and writes table, figures and page.

    Raises:
        ValueError: for settings that cannot work, or a folder that holds another study.
        Stopped: if a run cannot go on.
    """
    study.check()
    planned = groups(study)
    for group in planned:
        group.config.check()
        check_devices(group.config)
    runs = sum(len(group.config.methods) * len(group.config.seeds) for group in planned)
    with tqdm(total=runs, desc="study", unit="run", smoothing=0.1) as bar:
        for group in planned:
            run_group(group, study.out, bar)
    print(f"page: {write_study(study.out)}")


def run_group(group: Group, root: Path, bar: tqdm) -> None:
    """Trains and evaluates the runs of a group; checkpoints are dropped as soon as a run has ended."""
    config = group.config
    facts = {
        "part": group.part,
        "methods": list(config.methods),
        "seeds": list(config.seeds),
        **config.facts(),
    }
    folder = open_run(config, root, facts, program="experiments.study")
    bench = Workbench(config, config.data())
    # Its page does not speak of the path KL, which would take a good part of the time of a run.
    base_params, evaluate, _ = bench.prepare(folder, root / "base", with_path_kl=False)
    rows = read_metrics(folder.path)
    diverged = {(row["method"], row["seed"]) for row in rows if row["kind"] == "diverged"}
    for seed in config.seeds:
        for name in config.methods:
            bar.set_postfix_str(f"{group.part}/{folder.path.name}: {name}, seed {seed}")
            finished = has_params(params_folder(folder.path, name, seed))
            if not finished and (name, seed) not in diverged:
                loop = bench.loop(folder, name, seed, base_params)._replace(shows_progress=False)
                start = None if bench.method(name).from_base else bench.fresh_params(seed)
                try:
                    loop.train(base_params, start, evaluate)
                except Stopped as reason:  # a learning rate that is too high is a result, too
                    folder.log_once({"kind": "diverged", "method": name, "seed": seed, "reason": str(reason)})
            remove_folder(folder.path / "checkpoints" / f"{name}-seed{seed}")
            bar.update()


def main() -> int:
    """Runs the study named on the command line; returns the exit status."""
    study = tyro.extras.subcommand_cli_from_dict(
        {"digits": Study}, prog="python -m experiments.study", description=__doc__
    )
    try:
        with preemption.watching():
            run_study(study)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except Preempted as error:
        print(f"stopped by SIGTERM: {error}; the same command with --resume continues", file=sys.stderr)
        return preemption.EXIT_STATUS
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

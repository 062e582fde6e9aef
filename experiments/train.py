"""The training program: pretrain a flow, adapt it to new data or to a reward by several methods, compare them.

python -m experiments.train digits --help
"""

import difflib
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

import gft_jax as gft
from experiments.configs import few_steps, reward, terminal
from experiments.configs.camelyon17 import Camelyon17
from experiments.configs.digits import Digits
from experiments.configs.domains import defaults_for
from experiments.configs.few_steps import FewSteps
from experiments.configs.images import Images
from experiments.configs.reward import Reward
from experiments.configs.settings import Settings
from experiments.configs.sit_xl import SitXl
from experiments.configs.terminal import Terminal
from experiments.configs.toy2d import Toy2d
from experiments.configs.wilds import Wilds
from experiments.devices import check_devices, join_processes
from experiments.few_steps.program import compare_few_steps
from experiments.files import read_json, write_arrays
from experiments.images.bench import ImageBench
from experiments.images.own_base import own_base
from experiments.loop import Preempted, Stopped, preemption
from experiments.planar import NUM_POINTS, is_planar, write_paths
from experiments.report import table_of, write_report
from experiments.reward.program import raise_reward
from experiments.run_folder import RunFolder, begun_run, open_run
from experiments.summary_text import render_text
from experiments.terminal.bench import TerminalBench
from experiments.workbench import Workbench

EXPERIMENTS: dict[str, type[Settings]] = {
    each.experiment: each for each in (Digits, Toy2d, Terminal, FewSteps, Images, Wilds, Camelyon17, SitXl)
}
"""Those that adapt a flow to new data."""
ROOT = Path("runs")
NUM_IMAGES = 64


def main() -> int:
    """Runs the experiment named on the command line; returns the exit status.

    0: done; 1: stopped, since it cannot go on so; 2: bad settings, or files that cannot be read or written; 75: ended
    by a SIGTERM, and 130 by an interrupt: the same command with --resume continues.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    names = [*EXPERIMENTS, Reward.experiment]
    if name and not name.startswith("-") and name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        print(f"error: unknown experiment {name!r}. {hint}There are: {', '.join(names)}", file=sys.stderr)
        return 2
    config = parse(sys.argv[1:])
    # Orbax would print pages of tracebacks of an error that is raised besides, and told below.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        config.check()
        join_processes(config)
        with preemption.watching():
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
    except Preempted as error:
        print(f"stopped by SIGTERM: {error}; the same command with --resume continues", file=sys.stderr)
        return preemption.EXIT_STATUS
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> Settings | Reward:
    """Settings from the command line, without the name of the program."""
    # Defaults of these depend on a flag.
    raising, tempering, shortening = (
        defaults_for(each.DEFAULTS, arguments) for each in (reward, terminal, few_steps)
    )

    def with_reward(config: Annotated[Reward, tyro.conf.arg(name="")] = raising) -> Reward:
        return config

    def with_terminal(config: Annotated[Terminal, tyro.conf.arg(name="")] = tempering) -> Terminal:
        return config

    def with_few_steps(config: Annotated[FewSteps, tyro.conf.arg(name="")] = shortening) -> FewSteps:
        return config

    with_defaults = {
        Terminal.experiment: with_terminal,
        FewSteps.experiment: with_few_steps,
        Reward.experiment: with_reward,
    }
    return tyro.extras.subcommand_cli_from_dict(
        EXPERIMENTS | with_defaults,
        prog="python -m experiments.train",
        description=__doc__,
        args=arguments,
    )


def run(config: Settings | Reward) -> None:
    """Pretrains (or finds) the base, fine-tunes it by every method and seed, evaluates, and writes the report."""
    started = time.perf_counter()
    root = ROOT / config.experiment
    if isinstance(config, Reward):
        folder = raise_reward(config, root)
    elif isinstance(config, FewSteps):
        folder = compare_few_steps(config, root)
    else:
        folder = adapt(config)
    finish(folder, started)


def adapt(config: Settings) -> RunFolder:
    """Adapts the base to new data by every method and seed."""
    check_devices(config)
    root = ROOT / config.experiment
    task, begun = None, begun_run(config, root)
    if isinstance(config, Images):
        config = config if begun is None else _with_base_of(config, begun)
        task = config.task(None if begun is None else own_base(begun))
    facts = {"methods": list(config.methods), "seeds": list(config.seeds), **config.facts()}
    facts |= {"num_evaluations": config.num_evaluations} | ({} if task is None else task.facts)
    folder = open_run(config, root, facts)
    print(f"run folder: {folder.path}")
    if isinstance(config, Images) and task is not None:
        task.check_same_data(folder.path)
        bench = ImageBench(config, task)
    else:
        data = config.data()
        bench = TerminalBench(config, data) if isinstance(config, Terminal) else Workbench(config, data)
    base_params, evaluate, base_samples = bench.prepare(folder, root / "base")
    samples, final = {"real": bench.data.held_out, "base": base_samples}, {"base": base_params}
    planar = is_planar(bench.event_shape)
    first = config.seeds[0]
    for seed in config.seeds:
        for name in config.methods:
            start = None if bench.method(name).from_base else bench.fresh_params(seed)
            loop, watch = bench.loop(folder, name, seed, base_params), bench.watch(folder, name, seed)
            params = loop.train(base_params, start, evaluate, watch)
            if seed == first:
                samples[name] = evaluate(params)[1]
                final[name] = params

    if not folder.is_writer:
        return folder
    num_kept = NUM_POINTS if planar else NUM_IMAGES
    write_arrays(folder.path / "samples.npz", {name: x[:num_kept] for name, x in samples.items()})
    if planar:
        flows = {name: (bench.drift, params) for name, params in final.items()}
        write_paths(folder.path, flows, config.sampling_steps)
    return folder


def _with_base_of(config: Images, run: Path) -> Images:
    """Settings whose base is the one that a run was begun with, where they name none: the run has a copy of it."""
    if config.base is not None or config.pretrain:
        return config
    begun = read_json(run / "config.json").get("config", {})
    return replace(config, base=begun.get("base"), base_method=config.base_method or begun.get("base_method"))


def finish(run: RunFolder, started: float) -> None:
    """Notes the time taken, writes the report and prints the table."""
    run.close()
    if not run.is_writer:
        return
    run.add_session(round(time.perf_counter() - started, 1))
    report = write_report(run.path)
    print(render_text(*table_of(run.path)))
    print(f"report: {report}")


if __name__ == "__main__":
    gft.parallel.leave(main())

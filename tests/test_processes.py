"""Two processes take the run of one, and a start that fails says why. Each runs in a process of its own."""

import json
import shlex
import socket

import jax
import numpy as np
import pytest
from programs import beside, together

import gft_jax as gft
from experiments.data.digit_images import write_digits

TRAIN = shlex.split(
    "-m experiments.train digits --methods gradual-linear --steps 4 --eval-every 2 --base-steps 2 --hidden 8 --depth 1 "
    "--batch-size 8 --num-target 16 --sampling-steps 2 --learning-rate 1e-3"
)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_processes_of_two_devices_take_the_run_of_one_with_four():
    """Local plans are those of `per_shard`, whole ones those of one stream: losses agree to 1e-5, states to 1e-4."""
    port = free_port()
    program = beside("processes_program.py")
    two = together([[program, 2, process, 2, port] for process in (0, 1)], 2)
    [one] = together([[program, 4, 0, 1, 0]], 4)
    assert [printed["main"] for printed in two] == ["True", "False"]
    for form in ("pmap", "sharded", "whole_plan"):
        for printed in two:
            for value, tolerance in (("losses", 1e-5), ("state", 1e-4)):
                ours, theirs = (json.loads(each[f"{form}.{value}"]) for each in (printed, one))
                np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
            assert printed[f"{form}.global"] == printed[f"{form}.layout"] == "True"
            assert float(printed[f"{form}.again"]) == 0.0
    # Power: another plan is another run.
    plans = [np.array(json.loads(one[f"{form}.losses"])) for form in ("sharded", "whole_plan")]
    assert np.abs(plans[0] / plans[1] - 1).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("form", ["--parallel pmap", "--parallel sharded --fsdp 2"])
def test_the_training_program_over_two_processes_is_that_of_one(form, tmp_path):
    """To 1e-6; parameters are of order 0.1, and training moves them by 1e-3."""
    port = free_port()
    flags = [
        *shlex.split(form),
        "--coordinator",
        f"127.0.0.1:{port}",
        "--num-processes",
        2,
        "--out",
        tmp_path / "two",
    ]
    together([[*TRAIN, *flags, "--process-id", process] for process in (0, 1)], 2)
    together([[*TRAIN, "--out", tmp_path / "one"]], 1)
    two, one = (gft.load(tmp_path / name, "gradual-linear") for name in ("two", "one"))
    for ours, theirs in zip(*map(jax.tree.leaves, (two.params, one.params)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    moved = [
        np.abs(np.asarray(new) - np.asarray(old)).max()
        for new, old in zip(*map(jax.tree.leaves, (one.params, one.base_params)), strict=True)
    ]
    assert max(moved) > 1e-4  # power
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [(row["method"], row["step"]) for row in rows if row["kind"] == "evaluation"]
    assert len(evaluations) == len(set(evaluations))  # one process logs


@pytest.mark.slow
def test_a_pretrained_network_of_images_is_fine_tuned_over_two_processes(tmp_path):
    """The base is looked at only after the processes have joined: before, JAX would have taken its devices."""
    write_digits(tmp_path / "digits", side=4, num_per_class=6)
    program = shlex.split(
        "-m experiments.train images --steps 2 --eval-every 1 --batch-size 8 --num-evaluated 5 --held-out 0.5 "
        "--sampling-steps 2 --data"
    )
    pretraining = shlex.split("--pretrain --network mlp --hidden 8 --depth 1 --out")
    together([[*program, tmp_path / "digits" / "old", *pretraining, tmp_path / "base"]], 1)
    base, tuned = ["--base", tmp_path / "base", "--methods", "gradual-linear"], tmp_path / "digits" / "new"
    base += ["--learning-rate", "1e-3"]
    joining = ["--parallel", "pmap", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2]
    two = [*program, tuned, *base, *joining, "--out", tmp_path / "two", "--process-id"]
    together([[*two, process] for process in (0, 1)], 2)
    together([[*program, tuned, *base, "--out", tmp_path / "one"]], 1)
    ours, theirs = (gft.load(tmp_path / name, averaged=False).params for name in ("two", "one"))
    for each, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(each, other, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("alone", "TimeoutError process 0 has waited 4 s in vain for the others, 2 of them at 127.0.0.1:"),
        ("no-coordinator", "TimeoutError process 1 has waited 4 s in vain"),
        ("port-in-use", "OSError process 0 cannot listen at 127.0.0.1:"),
        ("no-environment", "ValueError the environment names no other processes"),
    ],
)
def test_a_start_that_fails_says_why_and_in_time(case, message):
    [printed] = together([[beside("start_program.py"), case]], 1)
    assert printed["error"].startswith(message)
    assert float(printed["seconds"]) < 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("node0:1234",), "num_processes and process_id missing: give coordinator, num_processes and"),
        ((None, 2, 0), "coordinator missing"),
        (("node0", 2, 0), "coordinator is HOST:PORT, such as node0:12345, got 'node0'"),
        (("node0:123456", 2, 0), "coordinator is HOST:PORT"),
        (("node0:1234", 0, 0), "num_processes must be >= 1, got 0"),
        (("node0:1234", 2, 2), "process_id counts from 0 to 1 with num_processes=2, got 2"),
    ],
)
def test_flags_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gft.parallel.start(*arguments)


def test_a_process_alone_is_the_main_one_and_has_all_rows():
    assert gft.parallel.is_main()
    assert gft.parallel.share() == gft.pairing.Share(0, 1)

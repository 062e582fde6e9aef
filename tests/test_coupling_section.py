"""Diagnostics of the coupling, from the training step to the report."""

import json
import shlex

import numpy as np
import pytest
from programs import call

import gft_jax as gft
from experiments import train
from experiments.configs.toy2d import Toy2d
from experiments.coupling_section import coupling_section, unconverged

TINY = shlex.split(
    "--steps 4 --eval-every 2 --base-steps 3 --hidden 8 --depth 1 --batch-size 8 --num-target 40 --sampling-steps 3 "
    "--coupling exact --coupled-batches 2 --methods plain gradual-linear"
)


def row(**changes):
    values = {
        "kind": "coupling",
        "step": 0,
        "cost": 2.0,
        "optimal_cost": 1.0,
        "independent_cost": 5.0,
        "excess": 0.25,
        "distinct_sources": 0.64,
        "distinct_targets": 1.0,
        "effective_rows": 1.0,
        "entropy": float(np.log(7)),
        "marginal_error": 1e-4,
        "converged": True,
    }
    return values | changes


def test_the_section_has_mean_and_range_of_every_number():
    config = {"config": {"coupling": "sinkhorn"}}
    page = coupling_section(config, [row(), row(step=50, cost=4.0), {"kind": "train"}])
    assert "sinkhorn: diagnostics of 2 pairings" in page
    assert '<th scope="row">cost</th><td>3</td><td>2</td><td>4</td>' in page
    assert '<th scope="row">partners</th><td>7</td><td>7</td><td>7</td>' in page
    assert "All converged." in page
    assert coupling_section(config, [{"kind": "train"}]) == ""


def test_pairings_that_did_not_converge_are_named():
    rows = [row(), row(step=50, converged=False, marginal_error=0.2), row(step=100, converged=False)]
    assert "<strong>2 of them did not converge.</strong>" in coupling_section({}, rows)
    (sentence,) = unconverged(rows)
    assert (
        "did not converge in 2 of 3 diagnosed pairings (steps 50, 100; marginal error up to 0.2)" in sentence
    )
    assert unconverged([row()]) == []


@pytest.mark.slow
def test_a_run_logs_what_its_pairs_are_like(tmp_path, monkeypatch):
    """Of the first method alone, whose pairs the others share; as the stream itself says."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "toy2d", *TINY, "--out", "run") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if row["kind"] == "coupling"]
    assert [(row["method"], row["step"]) for row in found] == [("plain", step) for step in (0, 2, 4)]
    assert "exact: diagnostics of 3 pairings" in (tmp_path / "run" / "report.html").read_text()
    stream = gft.pairing.batches(
        Toy2d(num_target=40).data().target,
        batch_size=8,
        seed=0,
        coupling=gft.couplings.exact(),
        pair_size=16,
    )
    for row in found:
        assert row["cost"] == pytest.approx(float(stream.pairing(row["step"]).cost), rel=1e-5)
        assert row["excess"] == pytest.approx(0, abs=1e-5)
        assert row["converged"]


def test_coupled_batches_need_a_coupling(monkeypatch, capsys):
    assert call(monkeypatch, train, "toy2d", "--coupled-batches", 4) == 2
    assert "--coupled-batches is 4; allowed is 1, with --coupling independent" in capsys.readouterr().err
    assert call(monkeypatch, train, "toy2d", "--coupling", "exact", "--coupled-batches", 0) == 2
    assert "--coupled-batches is 0; allowed is at least 1" in capsys.readouterr().err

"""The comparison of couplings in fine-tuning: its tables, and a tiny one end to end."""

import json
import types
from typing import get_args

import jax
import numpy as np
import pytest
from programs import call

import gft_jax as gft
from experiments.configs.settings import FineTuningCouplingName
from experiments.configs.toy2d import Toy2d
from experiments.couplings import __main__ as couplings
from experiments.couplings import finetuned
from experiments.couplings import finetuned_flow as flow
from experiments.couplings import finetuned_page as page
from experiments.couplings.table import Column

TINY = Toy2d(num_target=24, batch_size=8, base_steps=2, hidden=4, depth=1)
STEPS = 5
W2 = (Column("w2", "W2", 2),)


def test_every_coupling_of_the_training_program_is_compared():
    assert set(get_args(FineTuningCouplingName)) < set(flow.STREAMS)
    assert set(flow.STREAMS) == set(get_args(flow.StreamName))


def test_energies_below_the_least_are_noticed_some_or_all_of_them():
    below, above = {"energy_over_squared_w2": 0.8}, {"energy_over_squared_w2": 1.1}
    assert page.is_deficit({"a": [below, below], "b": [below]})
    assert not page.is_deficit({"a": [below, above], "b": [below]})
    assert page.has_deficit({"a": [above, above], "b": [above, below]})
    assert not page.has_deficit({"a": [above], "b": [above]})


def test_the_lowest_mean_is_named_with_the_ranges_that_reach_it():
    runs = {
        "a": [{"w2": 1.0}, {"w2": 3.0}],
        "b": [{"w2": 1.4}, {"w2": 1.6}],
        "c": [{"w2": 1.61}, {"w2": 1.7}],
    }
    assert "| W2 | **b** | 1.50 | a |" in page.lowest(runs, W2)
    assert "| W2 | **c** | 1.66 | none |" in page.lowest({"c": runs["c"]}, W2)
    shown = page.table(runs, {"w2": 4.0}, W2)
    assert "| base, before fine-tuning | 4.00 |" in shown
    assert "| a | 2.00 (1.00 to 3.00) |" in shown


@pytest.fixture(scope="module")
def tuning(tmp_path_factory):
    """The runs of a tiny base in the plane, whose programs are compiled once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(flow.CONFIGS, "toy2d", TINY)
        return flow.FineTuning("toy2d", STEPS, tmp_path_factory.mktemp("base"))


def test_the_cooling_ends_within_the_steps_that_were_asked_for(tuning):
    assert TINY.steps != STEPS
    cooling = tuning.bench.method(flow.METHOD).cooling
    temperatures = [float(cooling.temperature(cooling.init(), step)) for step in range(STEPS)]
    assert temperatures[-1] == 0
    assert temperatures[-2] > 0


def test_numbers_of_the_base_are_those_of_its_flow(tuning):
    found, held_out = tuning.base().numbers, tuning.data.held_out
    noise = jax.random.normal(jax.random.key(flow._NOISE_SEED), held_out.shape)
    base = gft.sampling.flow_map(tuning.bench.drift, tuning.base_params, num_steps=8)
    end = np.asarray(jax.jit(base)(noise))
    assert found["w2_8"] == pytest.approx(gft.metrics.w2(end, held_out), rel=1e-4)
    assert found["w2_1"] != pytest.approx(found["w2_8"], rel=1e-4)
    assert found["to_base_samples"] == 0
    assert found["to_base_drift"] == pytest.approx(0, abs=1e-5)
    # Straight paths at constant speed would have an energy equal to the square of their length.
    energy = found["energy_over_squared_w2"] * gft.metrics.w2(noise, held_out) ** 2
    assert 0 < found["path_length"] ** 2 < energy
    assert found["normalised_path_energy"] == pytest.approx(
        abs(found["energy_over_squared_w2"] - 1), rel=1e-4
    )
    assert found["floor_w2"] < found["w2_100"]


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was_and_refuses_other_settings(
    tuning, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(finetuned, "FineTuning", lambda domain, num_steps, cache: tuning)
    monkeypatch.setitem(flow.STREAMS, "exact-of-1024", flow._paired("exact", 16))
    out, shown = tmp_path / "runs", tmp_path / "page"
    given = (
        "finetuned",
        "--couplings",
        "independent",
        "exact-of-1024",
        "--seeds",
        "0",
        "--steps",
        str(STEPS),
    )
    given = (*given, "--domains", "toy2d", "--out", str(out), "--page", str(shown))
    assert call(monkeypatch, couplings, *given) == 0
    runs = {file.stem: json.loads(file.read_text())["numbers"] for file in out.glob("*.json")}
    assert set(runs) == {"toy2d-base", "toy2d-exact-of-1024-seed0", "toy2d-independent-seed0"}
    trained = [runs[f"toy2d-{name}-seed0"] for name in ("exact-of-1024", "independent")]
    assert trained[0]["pair_cost"] < trained[1]["pair_cost"]
    assert trained[0]["to_base_samples"] != trained[1]["to_base_samples"] > 0
    whole = (shown / "couplings_finetuned.md").read_bytes()
    assert (shown / "couplings_finetuned.png").stat().st_size > 10_000
    (out / "toy2d-independent-seed0.json").unlink()
    again = []
    run = flow.FineTuning.run
    monkeypatch.setattr(flow.FineTuning, "run", lambda *args: again.append(args[1:]) or run(*args))
    assert call(monkeypatch, couplings, *given) == 0
    assert again == [("independent", 0)]
    assert (shown / "couplings_finetuned.md").read_bytes() == whole

    capsys.readouterr()
    assert call(monkeypatch, couplings, *given, "--steps", "6") == 2
    assert "is of a run with steps = 5, this one has 6: name another folder" in capsys.readouterr().err
    assert call(monkeypatch, couplings, "finetuned", "--domains", "digits", "digits") == 2
    assert "--domains is ('digits', 'digits'); allowed is one or more, each once" in capsys.readouterr().err


def test_a_coupling_that_does_not_converge_is_named_before_training(tuning, monkeypatch):
    x = np.zeros((4, 2), np.float32)
    pairing = gft.couplings.exact()(jax.random.key(0), x, x)._replace(converged=np.False_)
    stream = types.SimpleNamespace(pairing=lambda step: pairing)
    monkeypatch.setitem(flow.STREAMS, "sinkhorn", lambda *given: lambda seed: stream)
    with pytest.raises(
        ValueError, match=r"the coupling sinkhorn on toy2d: .*has not converged.*raise epsilon"
    ):
        tuning.run("sinkhorn", 0)

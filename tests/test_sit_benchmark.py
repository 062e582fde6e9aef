"""What the compiler counts of SiT, and that the benchmark says it."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import sit, sit_steps
from experiments.benchmarks.sit import Finding
from experiments.scaling.transformer import SIT_XL_2, forward_flops


@pytest.mark.slow
def test_an_image_takes_the_published_operations():
    """118.6 Gflops, counted as multiply-adds, in the DiT paper (arXiv:2212.09748); no weight is made."""
    cost = sit_steps.forward_cost(sit_steps.network("XL/2"))
    assert cost.flops == pytest.approx(237e9, rel=0.03)
    # Norms, activations and softmax are not in the formula.
    assert 1 <= cost.flops / forward_flops(SIT_XL_2) < 1.02
    # Power: a patch of 4 has a quarter of the tokens.
    assert sit_steps.forward_cost(sit_steps.network("XL/4")).flops < 0.3 * 237e9


@pytest.mark.slow
def test_a_gradual_step_is_four_passes_beside_three():
    module = sit_steps.network("S/2").clone(depth=3)
    plain, gradual = (sit_steps.step_cost(module, method, 4, jnp.float32) for method in sit.PASSES)
    assert gradual.flops / plain.flops == pytest.approx(4 / 3, rel=0.05)
    # Base parameters, at least.
    assert gradual.peak_bytes - plain.peak_bytes > 4 * 3e6
    # Linear in the blocks: what one and two of them say of three is what three say.
    written_out, rematerialised = (
        sit_steps._compiled_step(module.clone(remat=remat), "plain", 4, jnp.float32)
        for remat in (False, True)
    )
    assert plain.flops == pytest.approx(written_out.flops, rel=0.01)
    assert rematerialised.flops / written_out.flops == pytest.approx(4 / 3, rel=0.05)
    # Of twelve blocks in a loop, eight images each: their inputs stay, instead of all that is within them.
    whole = sit_steps.network("S/2", scan=True)
    least, most = (
        sit_steps._compiled_step(module, "plain", 8, jnp.float32).peak_bytes
        for module in (whole.clone(remat=True), whole)
    )
    assert least < 0.6 * most


@pytest.mark.slow
def test_timed_steps_are_shares_of_the_products(monkeypatch):
    monkeypatch.setattr(sit, "_SIDE", 64)
    module = sit_steps.network("S/8").clone(depth=1, hidden_size=8, num_heads=2)
    findings = {each.what: each for each in sit.timed_on_cpu(module, 2, 2)}
    name = "SiT of width 8, plain step, float32, batch 2"
    products, share, images = (
        findings[what]
        for what in ("float32 matrix products of 64 x 64", f"{name}: share of that", f"{name}: images")
    )
    assert share.between == (0.45, 1.0)
    assert findings[f"{name.replace('plain', 'gradual')}: share of that"].between is None
    # share = operations / time / rate, median by median (within the spread of two rounds).
    operations = sit._operations(module, "plain", 1)
    assert 0.2 < share.found / (operations * images.found / (1e9 * products.found)) < 5


def test_operations_of_a_step_are_those_of_the_study():
    module = sit_steps.network("XL/2", scan=True, remat=True)
    assert sit._operations(module, "plain", 2) == 6 * forward_flops(SIT_XL_2)
    assert sit._operations(module, "gradual", 1) == 4 * forward_flops(SIT_XL_2)


def test_a_finding_is_met_within_what_is_asked():
    asked = Finding("share", 0.5, "", (0.45, 1.0), (0.4, 0.6))
    assert sit.cells(asked) == ["share", "0.5", "0.4 - 0.6", "0.45 to 1", "yes"]
    assert sit.cells(asked._replace(found=0.4))[-1] == "NO"
    assert sit.cells(Finding("memory", 2.0, "GiB")) == ["memory", "2 GiB", "", "", ""]
    timed = sit._timed("a", np.array([1.0, 3.0, 2.0]), "1/s")
    assert (timed.found, timed.quartiles) == (2.0, (1.5, 2.5))

"""The scaling study: formulas against numbers by hand, conservation, and programs as they are compiled."""

import sys

import pytest

from experiments.scaling import __main__ as program
from experiments.scaling import checks, page
from experiments.scaling.checks import Check
from experiments.scaling.collectives import Group, all_gather, all_reduce, groups
from experiments.scaling.devices import exchanged
from experiments.scaling.hardware import H100, H200
from experiments.scaling.plans import best, fits, limit, options
from experiments.scaling.step_time import images_per_second, share_of_peak, step_seconds
from experiments.scaling.training import STATE, Setting, memory, traffic
from experiments.scaling.transformer import (
    ALL,
    INPUTS,
    PRODUCTS,
    SIT_4B_2,
    SIT_XL_2,
    Transformer,
    forward_flops,
    kept_bytes,
    parameters,
)

SETTING = Setting(SIT_XL_2, H100, 64, 8, 32, 1, PRODUCTS)
BOUNDLESS = H100._replace(
    memory_rate=float("inf"), nvlink_rate=float("inf"), network_rate=float("inf"), products_reached=1.0
)


def test_parameters_and_operations_are_the_published_ones():
    # 675,129,632 with the 256 x 1152 constants of the positions; 118.6 GMAC in the paper on DiT.
    assert parameters(SIT_XL_2) + 256 * 1152 == 675_129_632
    assert forward_flops(SIT_XL_2) / 2 == pytest.approx(118.6e9, rel=5e-4)
    assert 4.0e9 < parameters(SIT_4B_2) < 4.1e9


def test_operations_of_a_tiny_transformer_by_hand():
    tiny = Transformer("tiny", depth=1, width=2, heads=1, image=2, patch=1, channels=1, out_channels=1)
    products = 2 * 4 * (2 * 6 + 2 * 2 + 2 * 8 + 8 * 2)  # four tokens: qkv, projection, expand, contract
    attention = 2 * (2 * 4 * 4 * 2)  # weights, and sums by them
    modulation = 2 * 2 * 12 + 2 * 2 * 4  # of the block and of the head
    ends = 2 * 4 * (1 * 2 + 2 * 1) + 2 * (256 * 2 + 2 * 2)  # patches and head, and the time
    assert forward_flops(tiny) == products + attention + modulation + ends


def test_kept_bytes_by_hand():
    shape = Transformer("small", depth=1, width=64, heads=4, image=16)
    features = shape.tokens * shape.width
    # Attention's weights are 4 heads x 64 tokens = 4 numbers for each of 64 features.
    assert kept_bytes(shape, ALL, 4, fused_attention=False) == (34 * 4 + 4 * 4 + 4 * (4 + 4)) * features
    assert kept_bytes(shape, ALL, 2, fused_attention=False) == (34 * 2 + 4 * 4 + 4 * (4 + 2)) * features
    assert kept_bytes(shape, PRODUCTS) == 2 * (1 + 3 + 1 + 4 + 1) * features + 2 * 6 * shape.width
    assert kept_bytes(shape, INPUTS) == 2 * features


@pytest.mark.parametrize("group", [Group(8, 1), Group(1, 4), Group(8, 4), Group(4, 3)])
def test_an_all_gather_sends_what_its_steps_send(group):
    """The same collective step by step: rings over nodes, then inside each, and sets of parts in place of bytes."""
    num_parts = group.on_node * group.nodes
    held = {(node, i): {(node, i)} for node in range(group.nodes) for i in range(group.on_node)}
    sent = {"network": 0, "nvlink": 0}
    for link, length in (("network", group.nodes), ("nvlink", group.on_node)):
        passed = {device: set(parts) for device, parts in held.items()}
        for _ in range(length - 1):
            sent[link] += sum(len(parts) for parts in passed.values())
            step = (1, 0) if link == "network" else (0, 1)
            passed = {
                (node, i): passed[(node - step[0]) % group.nodes, (i - step[1]) % group.on_node]
                for node, i in held
            }
            for device, parts in passed.items():
                held[device] |= parts
    assert all(len(parts) == num_parts for parts in held.values())
    traffic = all_gather(float(num_parts), group)
    assert traffic.network == pytest.approx(sent["network"] / num_parts)
    assert traffic.nvlink == pytest.approx(sent["nvlink"] / num_parts)
    # Each ends with everything and began with a part.
    assert traffic.nvlink + traffic.network == pytest.approx(num_parts - 1)
    assert sum(all_reduce(1.0, group)) == pytest.approx(2 * sum(all_gather(1.0, group)))


def test_groups_of_a_mesh():
    assert groups(64, 8) == (Group(8, 1), Group(1, 8))
    assert groups(64, 64) == (Group(8, 8), Group(1, 1))
    assert groups(64, 1) == (Group(1, 1), Group(8, 8))
    assert groups(16, 4) == (Group(4, 1), Group(2, 2))
    for wrong in (3, 128):
        with pytest.raises(ValueError, match="do not make groups"):
            groups(64, wrong)


def test_the_devices_of_a_copy_hold_the_whole_state_once():
    for fsdp in (1, 8, 64):
        found = memory(SETTING._replace(fsdp=fsdp))
        held = (found.params + found.average + found.optimiser) * SETTING.num_devices
        copies = SETTING.num_devices / fsdp
        assert held == pytest.approx(copies * STATE * parameters(SIT_XL_2))


def test_what_needs_less_memory_and_what_takes_longer():
    def needs(**changes):
        return memory(SETTING._replace(**changes)).total

    def takes(**changes):
        return step_seconds(SETTING._replace(**changes)).shown

    assert needs(fsdp=64) < needs() < needs(fsdp=1)
    assert needs(kept=INPUTS) < needs() < needs(kept=ALL)
    assert takes(kept=INPUTS) > takes() > takes(kept=ALL)
    assert needs(by_layer=True) < needs() < needs(base=4)
    assert needs(images=64) > needs(images=64, num_microbatches=8)
    assert takes(gradual=False) < takes() < takes(num_microbatches=2)
    assert takes(hardware=H200) < takes()
    assert takes(by_layer=True) > takes()


def test_with_boundless_rates_only_arithmetic_counts():
    setting = SETTING._replace(hardware=BOUNDLESS, kept=ALL)
    gradual, plain, again = (
        step_seconds(each)
        for each in (setting, setting._replace(gradual=False), setting._replace(kept=INPUTS))
    )
    assert gradual.memory == gradual.links == 0.0
    assert gradual.products / plain.products == pytest.approx(4 / 3)
    assert again.products / gradual.products == pytest.approx(5 / 4)
    # The blocks are all but 0.02 % of the operations, and the ends are left out of the time.
    assert share_of_peak(setting) == pytest.approx(1.0, abs=1e-3)
    assert limit(setting) == "arithmetic"


def test_gradients_cross_the_network_once_a_step_with_copies_and_once_a_microbatch_without():
    parts = SETTING._replace(num_microbatches=4)
    assert traffic(parts._replace(fsdp=1)) == traffic(SETTING._replace(fsdp=1))
    # fsdp=8: only the gradient's part of an eighth crosses, twice by 7 / 8.
    eighth = 4 * parameters(SIT_XL_2) / 8
    assert traffic(SETTING).network == pytest.approx(2 * 7 / 8 * eighth)
    assert traffic(parts).network == pytest.approx(4 * traffic(SETTING).network)


def test_the_best_setting_fits_and_none_that_fits_is_faster():
    found = best(SIT_XL_2, H100, 1, 1024, gradual=True)
    assert found is not None
    assert fits(found)
    faster = [
        each
        for each in options(SIT_XL_2, H100, 1, 1024, gradual=True)
        if images_per_second(each)[0] > images_per_second(found)[0]
    ]
    assert faster
    assert not any(fits(each) for each in faster)
    assert best(SIT_4B_2, H100, 1, 1, gradual=True) is None
    assert limit(SETTING._replace(num_devices=512, images=2)) == "network"


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="12 images do not divide over 8 devices"):
        best(SIT_XL_2, H100, 8, 12, gradual=True)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 1152 and 7"):
        best(SIT_XL_2._replace(heads=7), H100, 8, 16, gradual=True)
    with pytest.raises(ValueError, match="depth of SiT-XL/2 must be >= 1, got 0"):
        best(SIT_XL_2._replace(depth=0), H100, 8, 16, gradual=True)


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    text = """
%body.1 (p: f32[2]) -> f32[2] {
  %a = (f32[3,2]{1,0}, pred[5]{0}) all-reduce(%x, %y), replica_groups={}
}
ENTRY %main.2 (p: f32[2]) -> f32[2] {
  %g = f32[10]{0} all-gather(%p), dimensions={0}
  %w = f32[2] while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    assert exchanged(text) == {"all-reduce": 3 * (4 * 6 + 5), "all-gather": 40}


def test_the_page_is_written_and_shows_the_checks(tmp_path, monkeypatch):
    found = [Check("a number", 200.0, 201.0, "byte"), Check("another", 4.0, 5.0, note="read off here")]
    monkeypatch.setattr(program, "all_checks", lambda: found)
    output = tmp_path / "scaling.md"
    monkeypatch.setattr(sys, "argv", ["scaling", "--output", str(output)])
    assert program.main() == 0
    written = output.read_text()
    assert "| a number | 200 | 201 | byte | +0.5% |  |" in written
    assert "agree within\n  0.5%" in written  # what was read off says nothing of the formulas
    assert written.count("## ") == 9
    assert "nan" not in written
    setting = page.chosen(SIT_XL_2, 8, page.IMAGES)
    assert f"{images_per_second(setting)[0]:,.0f} to" in written


def test_without_a_folder_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "all_checks", lambda: pytest.fail("measured in vain"))
    monkeypatch.setattr(sys, "argv", ["scaling", "--output", str(tmp_path / "no" / "page.md")])
    assert program.main() == 2
    assert "there is no folder" in capsys.readouterr().err


def differences(found):
    """Relative differences by what was checked, and how."""
    return {f"{check.what}, {check.note}": abs(check.ratio - 1) for check in found}


@pytest.mark.slow
def test_parameters_and_operations_as_compiled():
    found = differences(checks.operation_checks())
    assert {value for name, value in found.items() if name.startswith("parameters")} == {0.0}
    assert next(value for name, value in found.items() if "forward pass of SiT-XL/2" in name) < 0.005
    assert max(found.values()) < 0.03


@pytest.mark.slow
def test_kept_bytes_as_compiled():
    assert max(differences(checks.kept_checks()).values()) < 0.01


@pytest.mark.slow
def test_memory_of_a_step_as_compiled():
    assert max(differences(checks.step_memory_checks()).values()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fsdp", "both", "mapped"])
def test_bytes_on_fake_devices(form):
    found = differences(checks.device_checks((form,)))
    whole = {name: value for name, value in found.items() if "all memory" in name}
    assert len(whole) == 1
    assert max(whole.values()) < 0.05
    assert max(value for name, value in found.items() if name not in whole) < 0.01

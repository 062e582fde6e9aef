"""Adapters on several devices, and the memory of a step of a large network."""

import pytest
from programs import on_fake_devices

from experiments.benchmarks import lora


@pytest.mark.slow
def test_a_step_of_adapters_is_the_same_on_any_number_of_devices():
    printed = {name: float(value) for name, value in on_fake_devices("lora_program.py").items()}
    for name in ("gradient", "run"):
        assert printed.pop(f"{name}_size") > 1e-2
    assert len(printed) == 8
    assert max(printed.values()) < 2e-3, printed


@pytest.mark.slow
def test_a_step_of_adapters_takes_less_than_six_tenths_of_the_memory_of_the_full_one():
    [full, adapted] = lora.memory("B/2", batch_size=4)
    assert full.state > 4 * full.base  # parameters, average, and two moments
    assert adapted.base == full.base
    assert adapted.total < 0.6 * full.total

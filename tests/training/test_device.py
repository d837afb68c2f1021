"""What torch computes on, and with how many threads."""

import pytest
import torch

from tests.training.runs import CPU
from training import machine
from training.device import choose_device, describe, fast_bfloat16, set_threads
from training.errors import InputError


def test_threads_are_shared_among_processes(every_processor: None, caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_num_threads()
    try:
        with caplog.at_level("INFO"):
            assert set_threads(processes=1) == torch.get_num_threads() == machine.processors()
            assert set_threads(processes=10_000) == torch.get_num_threads() == 1
            assert set_threads(most=1) == torch.get_num_threads() == 1
            assert set_threads(most=10_000) == torch.get_num_threads() == machine.processors()
    finally:
        torch.set_num_threads(before)
    assert caplog.messages[1] == f"1 threads for torch: {machine.processors()} processors, shared by 10000"


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda"])
def test_device(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"No CUDA device is usable here\. Choose the device cpu"):
            choose_device(name)
    else:
        expected = "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
        assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:7"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(InputError, match=r"Unknown device .*Use auto, cpu or cuda\."):
        choose_device(name)


def test_on_a_cpu_the_processor_says_whether_bfloat16_is_fast() -> None:
    assert fast_bfloat16(CPU) == machine.fast_bfloat16()


def test_description_names_the_processor() -> None:
    assert describe(CPU) == machine.describe()

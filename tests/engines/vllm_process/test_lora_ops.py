"""The CPU's LoRA ops."""

from tests.engines.vllm_process.separate import run_cases


def test_the_cases_of_the_lora_ops() -> None:
    run_cases("cases_lora_ops.py")

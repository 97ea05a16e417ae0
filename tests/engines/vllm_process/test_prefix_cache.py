"""What the prefix cache claims."""

from tests.engines.vllm_process.separate import run_cases


def test_the_cases_of_the_prefix_cache() -> None:
    run_cases("cases_prefix_cache.py")

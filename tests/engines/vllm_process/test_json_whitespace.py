"""The limit of whitespace in JSON. With a real engine: `test_whitespace_in_json_ends`."""

from tests.engines.vllm_process.separate import run_cases


def test_the_cases_of_json_whitespace() -> None:
    run_cases("cases_json_whitespace.py")

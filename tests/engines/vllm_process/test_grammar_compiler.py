"""The limits on the compilation of grammars. With a real engine: `tests.e2e.test_neighbours`."""

from tests.engines.vllm_process.separate import run_cases


def test_grammars_are_compiled_within_limits() -> None:
    run_cases("cases_grammar_compiler.py")

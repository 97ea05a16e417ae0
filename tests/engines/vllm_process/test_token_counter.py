"""The rules of counting, without an engine. `test_vllm` compares them with vLLM's own."""

import asyncio

from engines.vllm_process.token_counter import Counts, RequestCounter
from tests.engines.vllm_process.separate import run_cases


def counts(counter: RequestCounter, attempt_id: str = "a") -> tuple[int, int, int, bool]:
    result = counter.counts(attempt_id)
    assert result is not None
    return result["input_tokens"], result["cached_tokens"], result["output_tokens"], result["finished"]


def test_one_prompt_one_choice() -> None:
    counter = RequestCounter()
    counter.begin("a")
    assert counts(counter) == (0, 0, 0, False)
    counter.admit("a", "s", "s", 37)
    counter.observe("s", 1, 16, False)
    counter.observe("s", 2, None, False)
    assert counts(counter) == (37, 16, 3, False)
    counter.observe("s", 1, None, True)
    assert counts(counter) == (37, 16, 4, False)
    counter.end("a")
    assert counter.counts("a") == Counts(input_tokens=37, cached_tokens=16, output_tokens=4, finished=True)


def test_choices_share_their_prompt_and_its_first_cache_hit() -> None:
    counter = RequestCounter()
    counter.begin("a")
    for sequence in ("0_p", "1_p"):
        counter.admit("a", sequence, "p", 200)
    counter.observe("1_p", 1, 128, True)
    counter.observe("0_p", 1, 0, True)
    assert counts(counter)[:3] == (200, 0, 2)


def test_copies_of_a_sequence_count_as_choices() -> None:
    counter = RequestCounter()
    counter.begin("a")
    counter.admit("a", "s", "s", 10, copies=3)
    counter.observe("s", 2, 0, False)
    counter.observe("s", 1, None, True)
    assert counts(counter)[:3] == (10, 0, 9)


def test_prompts_are_summed() -> None:
    counter = RequestCounter()
    counter.begin("a")
    for sequence, tokens in (("p0", 10), ("p1", 20)):
        counter.admit("a", sequence, sequence, tokens)
        counter.observe(sequence, 5, 8, True)
    assert counts(counter)[:3] == (30, 16, 10)


def test_what_arrives_after_an_abort_is_counted() -> None:
    counter = RequestCounter()
    counter.begin("a")
    counter.admit("a", "s", "s", 5)
    counter.observe("s", 3, 0, False)
    counter.abort(["s", "unknown"])
    counter.end("a")
    assert counts(counter) == (5, 0, 3, True)
    assert counter.aborted("a") == {"s"}
    counter.observe("s", 1, None, False)
    counter.forget(counter.aborted("a"))
    counter.observe("s", 1, None, False)
    assert counts(counter) == (5, 0, 4, True)


def test_after_a_stop_string_nothing_more_is_counted() -> None:
    counter = RequestCounter()
    counter.begin("a")
    counter.admit("a", "s", "s", 5)
    counter.observe("s", 3, 0, True)
    counter.observe("s", 1, None, False)
    assert counts(counter)[2] == 3


def test_memory_is_bounded_by_finished_attempts() -> None:
    counter = RequestCounter(capacity=10)
    counter.begin("running")
    counter.admit("running", "r", "r", 1)
    for number in range(1000):
        name = str(number)
        counter.begin(name)
        counter.admit(name, name, name, 1)
        counter.observe(name, 1, 0, False)
        counter.abort([name])
        counter.end(name)
    assert counter.counts("989") is None
    assert counts(counter, "999") == (1, 0, 1, True)
    assert counts(counter, "running") == (1, 0, 0, False)
    assert len(counter._attempts) <= 11
    assert len(counter._sequences) <= 11


def test_what_is_not_an_attempt_is_not_counted() -> None:
    counter = RequestCounter()
    counter.admit("a", "s", "s", 5)
    counter.observe("s", 1, 0, True)
    counter.end("a")
    assert counter.counts("a") is None


def test_the_cases_of_requests_that_fail() -> None:
    run_cases("cases_failed_requests.py")


async def test_some_sequences_of_an_attempt_are_in_the_engine_core_at_a_time() -> None:
    counter, entered = RequestCounter(), list[str]()
    counter.begin("a")
    for number in range(5):
        counter.admit("a", f"s{number}", "p", 10)

    async def enter(sequence: str) -> None:
        await counter.enter("a", sequence, 2)
        entered.append(sequence)

    tasks = [asyncio.create_task(enter(f"s{number}")) for number in range(5)]
    await asyncio.sleep(0)
    assert entered == ["s0", "s1"]
    counter.observe("s0", 1, 0, False)
    await asyncio.sleep(0.01)
    assert entered == ["s0", "s1"], "a token does not end a sequence"
    counter.observe("s0", 1, None, True)
    await asyncio.sleep(0.01)
    assert entered == ["s0", "s1", "s2"]
    tasks[3].cancel()  # its client has left
    counter.abort(["s3", "s1"])
    await asyncio.sleep(0.01)
    assert entered == ["s0", "s1", "s2", "s4"]
    await counter.enter("unknown", "s", 1)

"""The cause of a failed start, from output as vLLM 0.32 writes it (shortened)."""

import time
from pathlib import Path

import pytest

from engines import host_memory
from engines.lifecycle import ending
from engines.lifecycle.failure_cause import FailureCause
from engines.lifecycle.output import EngineOutput
from engines.spec import ModelSpec

CORE = "(EngineCore pid=7) ERROR 11-26 00:44:11 [core.py:1510] "

SEE_ABOVE = """Traceback (most recent call last):
  File "/x/site-packages/vllm/v1/engine/utils.py", line 1431, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def core(text: str) -> str:
    return "".join(f"{CORE}{line}\n" for line in text.splitlines())


def traceback(last: str, path: str = "vllm/worker.py", line: int = 3) -> str:
    return (
        "Traceback (most recent call last):\n"
        f'  File "/x/site-packages/{path}", line {line}, in load\n    load()\n    ^^^^^^\n{last}\n'
    )


VALIDATION = traceback(
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", "pydantic/d.py"
)


def cause(text: str) -> str:
    reader = FailureCause()
    for line in text.splitlines():
        reader.feed(line)
    return reader.text()


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("nothing", "(APIServer pid=1) INFO 11-26 00:44:11 [a.py:1] fine\n", ""),
        (
            "the core's traceback, twice, and one that refers to it",
            core(traceback("ValueError: too small (1.5 GiB KV cache is needed, 0.98 GiB)"))
            + "Process EngineCore:\n"
            + traceback("ValueError: too small (1.5 GiB KV cache is needed, 0.98 GiB)")
            + "\n"
            + SEE_ABOVE,
            "ValueError: too small (1.5 GiB KV cache is needed, 0.98 GiB) "
            "(raise kv_cache_gib, lower max_model_len, or leave both out)",
        ),
        (
            "raised from another",
            traceback("OSError: [Errno 5] Input/output error", "a.py", 9)
            + "\nThe above exception was the direct cause of the following exception:\n\n"
            + traceback("RuntimeError: cannot load"),
            "OSError: [Errno 5] Input/output error (in a.py:9, load)",
        ),
        (
            "raised while another was handled",
            traceback("KeyError: 'foo'")
            + "\nDuring handling of the above exception, another exception occurred:\n\n"
            + traceback("ValueError: the model has type `foo`", "b.py", 4),
            "ValueError: the model has type `foo` (in b.py:4, load)",
        ),
        (
            "pydantic's form",
            VALIDATION + "  Value error, Model architectures ['Foo'] are not supported for now. "
            "Supported architectures: dict_keys(['A', 'B']) [type=value_error, input_value=Args(), "
            "input_type=Args]\n    For further information visit https://errors.pydantic.dev/2\n",
            "Model architectures ['Foo'] are not supported for now. "
            "(this version of vLLM does not know the model's architecture)",
        ),
        (
            "a message of several lines, and what others write after it",
            traceback("ValueError: Couldn't instantiate the backend tokenizer from one of: ")
            + "(1) a file\n(2) an instance\n\nLoading safetensors: 0%\n",
            "ValueError: Couldn't instantiate the backend tokenizer from one of: (1) a file (2) an instance "
            "(check the tokenizer's files in the model's folder)",
        ),
        (
            "a place tells more than the message",
            traceback("KeyError: 'added_tokens'", "transformers/tokenization_utils_base.py"),
            "KeyError: 'added_tokens' (check the tokenizer's files in the model's folder)",
        ),
        (
            "wrong arguments",
            "usage: launcher.py [-h]\n                   [model_tag]\n"
            "launcher.py: error: unrecognized arguments: --no-such-flag\n",
            "unrecognized arguments: --no-such-flag (check engine_args in the model's table)",
        ),
        (
            "no memory",
            core(traceback("RuntimeError: DefaultCPUAllocator: can't allocate memory: 9 bytes")),
            "RuntimeError: DefaultCPUAllocator: can't allocate memory: 9 bytes (out of memory: "
            "lower kv_cache_gib or max_model_len, or let other engines sleep)",
        ),
        (
            "a native crash",
            "Fatal Python error: Bus error\n\nThread\n",
            "Fatal Python error: Bus error",
        ),
        (
            "two processes at once",
            "(EngineCore pid=7) Traceback (most recent call last):\n"
            "(APIServer pid=1) Traceback (most recent call last):\n"
            '(EngineCore pid=7)   File "/x/site-packages/a.py", line 1, in f\n'
            "(APIServer pid=1) EngineDeadError: EngineCore encountered an issue. See stack trace (above)\n"
            "(EngineCore pid=7) IndexError: first\n",
            "IndexError: first (in a.py:1, f)",
        ),
    ],
)
def test_the_innermost_cause_is_told(name: str, output: str, expected: str) -> None:
    assert cause(output) == expected, name


def test_nothing_grows() -> None:
    reader = FailureCause()
    for number in range(2000):
        for line in traceback(f"ValueError: {number} {'x' * 5000}").splitlines():
            reader.feed(line)
        for _ in range(50):
            reader.feed("y" * 4000)
    assert len(reader._chains) <= 40
    assert len(reader._open) <= 1
    assert len(reader.text()) < 1000


def test_what_was_survived_is_not_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FailureCause()
    for line in traceback("ValueError: of a request").splitlines():
        reader.feed(line)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert reader.text() == ""


def test_an_exit_status_in_words() -> None:
    assert ending.exit_text(1) == "the engine ended with exit status 1"
    assert ending.exit_text(128 + 9) == "the engine was ended by SIGKILL"
    assert ending.exit_text(255) == "the engine ended with exit status 255"


def test_a_kill_by_the_kernel_is_told_in_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 3\noom_kill 4\n")
    assert ending.kernel_kills(vmstat) == 4
    assert ending.kernel_kills(tmp_path / "absent") == 0
    monkeypatch.setattr(ending, "kernel_kills", lambda: 5)
    monkeypatch.setattr(host_memory, "total_bytes", lambda: 4 << 30)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1 << 30)
    output = EngineOutput("m")
    text = ending.end_text(137, ModelSpec(id="m"), output, killed=True)
    assert text.startswith(
        "the engine was ended by SIGKILL: out of memory, the kernel killed it (1.00 GiB of 4.00 GiB"
    )
    assert ending.end_text(137, ModelSpec(id="m"), output, killed=False) == "the engine was ended by SIGKILL"
    assert ending.end_text(0, ModelSpec(id="m"), output, killed=True) == "the engine ended with exit status 0"

"""Uploads that are refused, and how much of them there may be."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.adapters import multipart
from gateway.config.sections import AdaptersConfig
from tests.gateway.adapters_fixture import ADAPTERS, AdapterStage, adapter_stage_at, add, fields, files

MIB = 1024**2


@pytest.fixture
async def stage(tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AdapterStage]:
    async with adapter_stage_at(tmp_path, standin, monkeypatch) as opened:
        yield opened


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


_BAD_UPLOADS: list[tuple[dict[str, str], dict[str, Any], int, str, str]] = [
    ({"base_model": ""}, {}, 400, "base_model", "Missing required parameter: 'base_model'."),
    ({"suffix": ""}, {}, 400, "suffix", "Missing required parameter: 'suffix'."),
    ({"suffix": "a/b"}, {}, 400, "suffix", "'suffix' must be"),
    ({"suffix": "x" * 65}, {}, 400, "suffix", "'suffix' must be"),
    ({"suffix": "x" * 2000}, {}, 400, "suffix", "'suffix' has more than 1024 bytes"),
    ({"visibility": "world"}, {}, 400, "visibility", "'visibility' must be project or user"),
    ({"visibility": "user"}, {}, 400, "visibility", "Only a token that names a user"),
    ({"base_model": "gone"}, {}, 404, "model", "`gone` does not exist"),
    ({"base_model": "away"}, {}, 400, "base_model", "`away` takes no adapters"),
    ({"colour": "red"}, {}, 400, "colour", "Unknown parameter: 'colour'"),
    ({}, {"file": None}, 400, "file", "Missing required parameter: 'file'."),
    ({}, {"config": None}, 400, "config", "Missing part 'config'"),
    ({}, {"more": ("x", b"x")}, 400, "more", "Unknown parameter: 'more'"),
    ({}, {"file": ("x", b"hello")}, 400, "file", "not a safetensors file"),
    ({}, {"config": ("x", b"{}")}, 400, "config", "'peft_type' must be LORA"),
    ({}, {"config": ("x", b"x" * 300_000)}, 413, "config", "'config' is larger than 262144 bytes"),
]


async def test_bad_uploads_are_refused_and_leave_nothing(stage: AdapterStage) -> None:
    for changes, parts, status, param, reply in _BAD_UPLOADS:
        sent = {name: part for name, part in (files() | parts).items() if part is not None}
        answer = await stage.stage.http.post(ADAPTERS, data=fields(**changes), files=sent)
        error = _error(answer)
        assert (answer.status_code, error["param"]) == (status, param), (changes, parts.keys())
        assert reply in error["message"]
        assert str(stage.folder) not in error["message"]
    assert stage.contents() == set()
    assert list((stage.folder / "adapters" / "incoming").iterdir()) == []


_NO_FORMS: list[tuple[str, bytes, int, str]] = [
    ("application/json", b"{}", 415, "unsupported_media_type"),
    ("multipart/form-data", b"", 400, "invalid_multipart"),
    ("multipart/form-data; boundary=" + "b" * 300, b"", 400, "invalid_multipart"),
    ("multipart/form-data; boundary=b", b"", 400, "invalid_multipart"),
    ("multipart/form-data; boundary=b", b"hello", 400, "invalid_multipart"),
    ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: x\r\n", 400, "invalid_multipart"),
    ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 9000, 400, "invalid_multipart"),
    ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--\r\n", 400, "unknown_parameter"),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="suffix"\r\n\r\na\r\n' * 2 + b"--b--\r\n",
        400,
        "invalid_multipart",
    ),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="suffix"\r\n\r\n\xff\r\n--b--\r\n',
        400,
        "invalid_value",
    ),
]


async def test_bodies_that_are_no_forms(stage: AdapterStage) -> None:
    for kind, body, status, code in _NO_FORMS:
        answer = await stage.stage.http.post(ADAPTERS, content=body, headers={"content-type": kind})
        assert (answer.status_code, (_error(answer))["code"]) == (status, code), (kind, body[:100])


async def test_a_refusal_of_the_engine_is_told_and_leaves_nothing(stage: AdapterStage) -> None:
    stage.examiner.refusal = "in '/run/torpor/7/adapters/x': its answers are not finite"
    answer = await stage.stage.http.post(ADAPTERS, data=fields(), files=files())
    assert answer.status_code == 400
    assert (_error(answer))["message"] == (
        "The engine refuses the adapter: in '<path>': its answers are not finite"
    )
    assert stage.contents() == set()
    assert (await stage.stage.http.get(ADAPTERS)).json()["data"] == []


async def test_large_uploads_stream_past_memory_and_are_bounded(
    tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the limit of other bodies is taken; what waits to be written stays small."""
    waiting: list[int] = []
    write = multipart._Reader.write

    def watched(reader: multipart._Reader) -> None:
        waiting.append(reader.waiting_bytes)
        write(reader)

    monkeypatch.setattr(multipart._Reader, "write", watched)
    config = AdaptersConfig(max_upload_bytes=24 * MIB)
    async with adapter_stage_at(tmp_path, standin, monkeypatch, config=config) as stage:
        large = {**files(), "file": ("x", bytes(20 * MIB))}
        answer = await stage.stage.http.post(ADAPTERS, data=fields(), files=large)
        assert (answer.status_code, (_error(answer))["code"]) == (400, "invalid_adapter")
        assert len(waiting) > 4
        assert max(waiting) < 2 * MIB
        too_large = {**files(), "file": ("x", bytes(25 * MIB))}
        answer = await stage.stage.http.post(ADAPTERS, data=fields(), files=too_large)
        assert (answer.status_code, (_error(answer))["code"]) == (413, "request_too_large")

        async def chunked() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
            for _ in range(25):
                yield bytes(MIB)

        kind = {"content-type": "multipart/form-data; boundary=b"}
        answer = await stage.stage.http.post(ADAPTERS, content=chunked(), headers=kind)
        assert (answer.status_code, (_error(answer))["code"]) == (413, "request_too_large")
        assert list((tmp_path / "adapters" / "incoming").iterdir()) == []


async def test_a_project_has_a_quota(tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with adapter_stage_at(
        tmp_path, standin, monkeypatch, config=AdaptersConfig(max_per_project=1)
    ) as stage:
        first = await add(stage.stage.http)
        answer = await stage.stage.http.post(ADAPTERS, data=fields(), files=files(2))
        error = _error(answer)
        assert (answer.status_code, error["code"]) == (429, "insufficient_quota")
        assert "1 of at most 1 adapters" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
        async with stage.stage.client(stage.stage.other.key) as other:
            await add(other, 3)
        await stage.stage.http.delete(f"{ADAPTERS}/{first['id']}")
        await add(stage.stage.http, 2)


async def test_a_quota_of_bytes_holds_for_uploads_at_once(
    tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(len(data) for _, data in files().values())
    config = AdaptersConfig(max_bytes_per_project=int(2.5 * size), uploads_at_once=3)
    async with adapter_stage_at(tmp_path, standin, monkeypatch, config=config) as stage:
        stage.examiner.go_on.clear()
        sent = [
            asyncio.create_task(stage.stage.http.post(ADAPTERS, data=fields(), files=files(seed)))
            for seed in range(3)
        ]
        while len(stage.examiner.examined) < 3:
            await asyncio.sleep(0.005)
        fourth = await stage.stage.http.post(ADAPTERS, data=fields(), files=files(4))
        assert (fourth.status_code, (_error(fourth))["code"]) == (429, "rate_limit_exceeded")
        stage.examiner.go_on.set()
        statuses = sorted([answer.status_code for answer in await asyncio.gather(*sent)])
        assert statuses == [200, 200, 429]
        assert len(stage.contents()) == 2

"""The database is taken away from a running gateway, and comes back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.process import QUESTION, Gateway, running_gateway

_CHAT = {"model": "far", "messages": QUESTION}


@contextmanager
def _away(gateway: Gateway) -> Iterator[None]:
    """The files are elsewhere, as after a disk has gone."""
    folder, elsewhere = gateway.folder / ".torpor", gateway.folder / "elsewhere"
    elsewhere.mkdir()
    files = [file.name for file in folder.glob("torpor.db*")]
    assert files
    for name in files:
        (folder / name).rename(elsewhere / name)
    try:
        yield
    finally:
        assert not list(folder.glob("torpor.db*")), "nothing was made in its place"
        for name in files:
            (elsewhere / name).rename(folder / name)


def _code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("error", {}).get("code")


_UNAVAILABLE = (503, "storage_unavailable")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _requests(http: httpx.Client, gateway: Gateway) -> int:
    answer = http.get(
        "/v1/organization/usage/completions",
        params={"start_time": int(time.time()) - 3600, "bucket_width": "1h"},
        headers={"authorization": f"Bearer {gateway.admin_key}"},
    ).json()
    return sum(result["num_model_requests"] for day in answer["data"] for result in day["results"])


def _models(standin: str) -> str:
    return f'[[models]]\nid = "far"\nurl = "{standin}/v1"\n'


def test_known_keys_work_on_and_new_ones_are_not_called_wrong(standin: str, tmp_path: Path) -> None:
    with running_gateway(tmp_path, _models(standin)) as gateway, gateway.http() as http:
        assert http.post("/v1/chat/completions", json=_CHAT).status_code == 200
        unseen = {"authorization": f"Bearer {gateway.admin_key}"}
        with _away(gateway):
            assert http.get("/v1/models").status_code == 200
            minted = http.post("/v1/torpor/tokens", json={"user": "a"}).json()["value"]
            for headers in (
                unseen,
                {"authorization": "Bearer sk-" + "a" * 48},
                {"authorization": f"Bearer {minted}"},
            ):
                answer = http.get("/v1/models", headers=headers)
                assert _code(answer) == _UNAVAILABLE
                assert int(answer.headers["retry-after"]) >= 1
            # The journal takes over: what is generated now is metered, and in the database later.
            assert http.post("/v1/chat/completions", json=_CHAT).status_code == 200
            ready = http.get("/health/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": "storage_unavailable"})
            assert http.get("/health/live").status_code == 200
        _until(lambda: http.get("/health/ready").status_code == 200)
        assert http.get("/v1/models", headers={"authorization": f"Bearer {minted}"}).status_code == 200
        assert http.get("/v1/organization/projects", headers=unseen).status_code == 200
        _until(lambda: _requests(http, gateway) == 2)


def test_memory_is_good_for_a_bounded_time(standin: str, tmp_path: Path) -> None:
    sections = "[authentication]\nmemory_s = 1.0\n"
    with running_gateway(tmp_path, _models(standin), sections) as gateway, gateway.http() as http:
        assert http.get("/v1/models").status_code == 200
        with _away(gateway):
            _until(lambda: _code(http.get("/v1/models")) == _UNAVAILABLE)
        assert http.get("/v1/models").status_code == 200

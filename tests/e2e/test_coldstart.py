"""Sleeping and waking as a client sees it: the real gateway, the real engine, the real model, CRIU."""

import concurrent.futures
import mmap
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from safetensors import safe_open

from coldstart.snapshots.manifest import FileIdentity, Manifest
from tests.process import CHAT_MODEL, EMBED_MODEL, MODELS, QUESTION, Gateway, running_gateway

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a snapshot of each model, none of them awake."""
    with running_gateway(tmp_path_factory.mktemp("sleepy"), snapshots=True) as gateway:
        for model in (CHAT_MODEL, EMBED_MODEL):
            assert "made and verified" in gateway.torpor("snapshot", "create", model).stdout
        yield gateway


def sleep(gateway: Gateway, tier: str, model: str = CHAT_MODEL) -> dict[str, object]:
    with gateway.http(gateway.root_key) as client:
        answer = client.post(f"/v1/torpor/engines/{model}/sleep", json={"tier": tier})
    assert answer.status_code == 200, answer.text
    engine: dict[str, object] = answer.json()
    return engine


def ask(gateway: Gateway, **options: object) -> tuple[str, str, float]:
    """The answer, the tier that the request found, and the milliseconds that it took."""
    began = time.perf_counter()
    raw = gateway.client().chat.completions.with_raw_response.create(
        model=CHAT_MODEL,
        messages=QUESTION,
        temperature=0,
        **options,  # type: ignore[call-overload]
    )
    took_ms = (time.perf_counter() - began) * 1000
    return raw.parse().choices[0].message.content or "", raw.headers["x-torpor-engine"], took_ms


def processes(gateway: Gateway) -> list[psutil.Process]:
    """The processes of engines, without spare sandboxes."""
    return [
        p for p in gateway.engines() if p.is_running() and not any("init.py" in word for word in p.cmdline())
    ]


@pytest.mark.parametrize("tier", ["snapshot", "paused"])
def test_an_engine_asleep_answers_as_before_and_says_how_it_was_found(sleepy: Gateway, tier: str) -> None:
    ask(sleepy)
    engine = sleep(sleepy, tier)
    assert engine["tier"] == tier
    if tier == "snapshot":
        assert (engine["state"], engine["memory_bytes"], engine["replicas"]) == ("cold", 0, [])
        assert processes(sleepy) == []
    else:
        assert {process.status() for process in processes(sleepy)} == {psutil.STATUS_STOPPED}
    answer, result, _ = ask(sleepy)
    assert ("Paris" in answer, result) == (True, tier)
    assert ask(sleepy)[1] == "hot"


def test_every_wake_is_told_with_its_phases(sleepy: Gateway) -> None:
    ask(sleepy)
    sleep(sleepy, "snapshot")
    ask(sleepy)
    with sleepy.http(sleepy.admin_key) as client:
        engines = {engine["id"]: engine for engine in client.get("/v1/torpor/engines").json()["data"]}
    wake = engines[CHAT_MODEL]["wakes"][-1]
    assert wake["from"] == "snapshot"
    assert {"sandbox", "restore", "canary", "total"} <= wake["ms"].keys()
    table = sleepy.torpor("engines", "--once").stdout
    assert CHAT_MODEL in table
    assert "restore=" in table


def test_embeddings_from_a_snapshot_are_the_same(sleepy: Gateway) -> None:
    def vector() -> list[float]:
        answer = sleepy.client().embeddings.create(model=EMBED_MODEL, input="asleep", encoding_format="float")
        return answer.data[0].embedding

    before = vector()
    sleep(sleepy, "snapshot", EMBED_MODEL)
    assert vector() == pytest.approx(before, abs=1e-5)


def test_two_wakes_of_one_snapshot_answer_differently_at_temperature_one(sleepy: Gateway) -> None:
    """The image holds the state of every random number generator: each wake draws new seeds."""

    def story() -> str:
        sleep(sleepy, "snapshot")
        answer = sleepy.client().chat.completions.create(
            model=CHAT_MODEL,
            messages=[{"role": "user", "content": "Tell me a story."}],
            temperature=1,
            max_tokens=40,
        )
        return answer.choices[0].message.content or ""

    assert len({story() for _ in range(4)}) == 4


def test_many_requests_at_once_share_one_wake_and_each_is_answered(sleepy: Gateway) -> None:
    sleep(sleepy, "snapshot")
    with sleepy.http(sleepy.root_key) as client:
        before = client.get("/v1/torpor/engines").json()["data"][0]["wakes"]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(sleepy), range(12)))
    assert all("Paris" in text for text, _, _ in answers)
    with sleepy.http(sleepy.root_key) as client:
        after = client.get("/v1/torpor/engines").json()["data"][0]["wakes"]
    assert len(after) == min(20, len(before) + 1)


def test_the_prefix_cache_does_not_survive_a_sleep(sleepy: Gateway) -> None:
    """Blocks of the cache whose pages were given back must never be hit: the answer would be wrong."""
    question = "Count the foxes. " * 40 + "What is the capital of France?"
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    texts = []
    for tier in ("hot", "paused", "snapshot"):
        if tier != "hot":
            sleep(sleepy, tier)
        for _ in range(2):
            done = sleepy.client().chat.completions.create(
                model=CHAT_MODEL,
                messages=long,
                temperature=0,
                max_tokens=16,
            )
            texts.append(done.choices[0].message.content)
    assert len(set(texts)) == 1


def test_snapshots_are_listed_verified_and_deleted(sleepy: Gateway) -> None:
    listed = sleepy.torpor("snapshot", "list").stdout
    assert CHAT_MODEL in listed
    assert "yes" in listed
    assert "yes" in sleepy.torpor("snapshot", "verify", CHAT_MODEL).stdout
    (memory,) = (sleepy.folder / ".torpor/snapshots" / EMBED_MODEL).glob("*/memory")
    memory.chmod(0o600)
    with memory.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damaged")
    done = sleepy.torpor("snapshot", "verify", EMBED_MODEL, check=False)
    assert done.returncode == 1
    assert "the content of memory has changed" in done.stderr
    assert "deleted 1" in sleepy.torpor("snapshot", "rm", EMBED_MODEL).stdout
    assert EMBED_MODEL not in sleepy.torpor("snapshot", "list").stdout
    refused = sleepy.torpor("snapshot", "verify", EMBED_MODEL, check=False)
    assert refused.returncode == 1
    assert "there is no snapshot" in refused.stderr


def test_a_project_with_engines_of_its_own_shares_the_snapshot_alone(sleepy: Gateway) -> None:
    sleep(sleepy, "snapshot")
    with sleepy.http(sleepy.admin_key) as client:
        (ours,) = [item["id"] for item in client.get("/v1/organization/projects").json()["data"]]
        theirs = client.post("/v1/organization/projects", json={"name": "theirs"}).json()["id"]
        account = client.post(
            f"/v1/organization/projects/{theirs}/service_accounts", json={"name": "somebody"}
        ).json()
    their_client = sleepy.client(account["api_key"]["value"])
    sleepy.end()
    configuration = sleepy.folder / "torpor.toml"
    text = configuration.read_text()
    configuration.write_text(text.replace("[models.lora]", f'dedicated_projects = ["{ours}"]\n[models.lora]'))
    sleepy.start()
    assert ask(sleepy)[1] == "snapshot"
    raw = their_client.chat.completions.with_raw_response.create(
        model=CHAT_MODEL, messages=QUESTION, temperature=0
    )
    assert raw.headers["x-torpor-engine"] == "snapshot"  # our engine is hot, and not theirs
    with sleepy.http(sleepy.root_key) as client:
        engine = client.get("/v1/torpor/engines").json()["data"][0]
    assert [item.get("project_id") for item in engine["replicas"]] == [None, ours]
    assert ask(sleepy)[1] == "hot"
    with sleepy.http(sleepy.admin_key) as client:
        seen = client.get("/v1/torpor/engines").json()["data"][0]["replicas"]
    assert all("project_id" not in item for item in seen)
    configuration.write_text(text)


def test_a_zeroed_tensor_is_seen_by_the_canary(sleepy: Gateway) -> None:
    """In the snapshot's memory. The manifest's digest is of the damaged file, which hides the damage."""
    ask(sleepy)
    sleep(sleepy, "snapshot")
    sleepy.end()
    (folder,) = (sleepy.folder / ".torpor/snapshots" / CHAT_MODEL).glob("0*")
    memory = folder / "memory"
    with safe_open(MODELS / CHAT_MODEL / "model.safetensors", "pt") as weights:
        tensor = weights.get_tensor("model.layers.12.post_attention_layernorm.weight")
    # As the engine computes in it: in float32 on processors without fast bfloat16.
    contents = [tensor.view(torch.int16).numpy().tobytes(), tensor.to(torch.float32).numpy().tobytes()]
    zeroed = 0
    with memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for content in contents:
            for position in list(_places(mapped, content)):
                mapped[position : position + len(content)] = bytes(len(content))
                zeroed += 1
    assert zeroed
    manifest = Manifest.read(folder / "manifest.json")
    files = {**manifest.files, "memory": FileIdentity.of(memory)}
    replace(manifest, files=files).write(folder / "manifest.json")
    sleepy.start()
    answer, result, _ = ask(sleepy)
    assert ("Paris" in answer, result) == (True, "cold")
    assert "did not answer as before" in sleepy.log
    assert "made and verified" in sleepy.torpor("snapshot", "create", CHAT_MODEL).stdout


def _places(mapped: mmap.mmap, content: bytes) -> Iterator[int]:
    position = mapped.find(content)
    while position >= 0:
        yield position
        position = mapped.find(content, position + len(content))


def test_an_engine_that_is_not_fit_is_replaced_within_the_request(sleepy: Gateway) -> None:
    """The canary in the manifest is made to differ: the restored engine holds its answer back and ends."""
    sleep(sleepy, "snapshot")
    sleepy.end()
    (path,) = (sleepy.folder / ".torpor/snapshots" / CHAT_MODEL).glob("*/manifest.json")
    manifest = Manifest.read(path)
    canary = dict(manifest.canary or {})
    canary["values"] = [canary["values"][0] + 1, *canary["values"][1:]]
    replace(manifest, canary=canary).write(path)
    sleepy.start()
    answer, result, _ = ask(sleepy)
    assert ("Paris" in answer, result) == (True, "cold")
    assert "did not answer as before" in sleepy.log
    usage = sleepy.torpor("usage", "--json").stdout
    assert CHAT_MODEL in usage

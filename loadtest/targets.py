"""What a load test can be pointed at: the stand-in engine itself, and gateways in front of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from loadtest.client import Endpoint
from loadtest.gateway import ADMIN_KEY, MODEL, Gateway, Running
from loadtest.processes import Child, free_port, python
from loadtest.standin import State

_READY_S = 60.0
# So large that every limit counts each request and none refuses one.
_AMPLE = 2_000_000_000
_AMPLE_CENTS = 100_000_000


@dataclass(frozen=True, slots=True)
class Engine:
    """The stand-in engine that runs."""

    child: Child
    port: int
    uds: Path

    @property
    def url(self) -> str:
        """Without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    async def state(self, *, forget: bool = False) -> State:
        """Its own account of what it has done since it was started, or since it was to forget."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            answer = await http.request("DELETE" if forget else "GET", f"{self.url}/standin/state")
        return msgspec.json.decode(answer.content, type=State)


Start = Callable[[Engine, Path], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway that can be started in front of the engine, with a folder for its files."""

    name: str
    keys: str
    """How it tells callers apart."""
    usage: str
    """Where it keeps what they used."""
    start: Start


@contextmanager
def standin(folder: Path) -> Iterator[Engine]:
    """The stand-in engine in a process of its own. Raises `NotReady`."""
    port, uds = free_port(), folder / "engine.sock"
    arguments = python("-m", "loadtest.standin", "--tcp", str(port), "--uds", str(uds), "--model", MODEL)
    with Child("the stand-in engine", arguments, log=folder / "engine.log") as child:
        child.wait_for(f"http://127.0.0.1:{port}/health", _READY_S)
        yield Engine(child, port, uds)


@contextmanager
def _direct(engine: Engine, _folder: Path) -> Iterator[Running]:
    yield Running("direct", Endpoint(port=engine.port), engine.child)


DIRECT = Target("direct", "", "", _direct)


def models_of(engine: Engine) -> str:
    """The ``[[models]]`` of a stand-in engine: with a fair queue and a price."""
    return (
        f'[[models]]\nid = "{MODEL}"\nurl = "{engine.url}/v1"\n'
        "max_running = 4096\nmax_concurrent = 4096\nmax_queued = 4096\n"
        f'[[prices]]\nmodel = "{MODEL}"\ninput = "1"\noutput = "2"\n'
    )


def with_everything_on(folder: Path, models: str, sections: str = "") -> Gateway:
    """A gateway with logs, metrics and limits, of which none is ever reached. Raises `NotReady`."""
    return Gateway(
        folder,
        '[server]\nport = {port}\nlog_format = "json"\nlog_file = "torpor.log"\n'
        "[metrics]\nport = {metrics_port}\n"
        f"[limits]\nrequests_per_minute = {_AMPLE}\ntokens_per_minute = {_AMPLE}\n"
        f"requests_per_day = {_AMPLE}\n{sections}\n{models}",
    )


def set_limits(gateway: Gateway) -> None:
    """Limits of the project and the key, and budgets, besides those of the configuration."""
    project = _only(gateway, "/v1/organization/projects")
    key = _only(gateway, f"/v1/organization/projects/{project}/api_keys")
    sizes = {
        "max_requests_per_1_minute": _AMPLE,
        "max_tokens_per_1_minute": _AMPLE,
        "max_tokens_per_1_day": _AMPLE,
        "max_concurrent_requests": 100_000,
    }
    for kind, subject in (("project", project), ("key", key)):
        limit = {"subject_type": kind, "subject_id": subject, **sizes}
        gateway.request("POST", "/v1/torpor/limits", limit, key=ADMIN_KEY)
    budget = {"threshold_amount": _AMPLE_CENTS, "currency": "USD", "interval": "month"}
    for path in (f"/v1/organization/projects/{project}/spend_limit", "/v1/organization/spend_limit"):
        gateway.request("POST", path, budget, key=ADMIN_KEY)


def _only(gateway: Gateway, path: str) -> str:
    return str(gateway.request("GET", path, key=ADMIN_KEY)["data"][0]["id"])


@contextmanager
def _torpor(engine: Engine, folder: Path) -> Iterator[Running]:
    gateway = with_everything_on(folder, models_of(engine), "[engines]\nsnapshots = false")
    with gateway.serving() as running:
        set_limits(gateway)
        yield running


TORPOR = Target("torpor", "tenant keys", "ledger", _torpor)

"""What a load test can be pointed at: the stand-in engine itself, and gateways in front of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from loadtest.client import Endpoint
from loadtest.processes import Child, free_port, python, run
from loadtest.standin import State

MODEL = "standin"
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


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that is ready; ``child`` is its process."""

    name: str
    endpoint: Endpoint
    child: Child
    model: str = MODEL
    ready_s: float = 0.0


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


@dataclass(frozen=True, slots=True)
class Site:
    """A folder with Torpor's configuration, its data and its keys."""

    folder: Path
    port: int
    metrics_port: int
    keys: Mapping[str, str]

    @property
    def url(self) -> str:
        """Without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """The value of a metric that Prometheus reads."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def database(self) -> Path:
        """The ledger's."""
        return self.folder / ".torpor/torpor.db"

    def torpor(self, *arguments: str) -> str:
        """Run the command; what it printed. Raises `NotReady`."""
        return run(python("-m", "gateway.cli", *arguments), cwd=self.folder)

    @contextmanager
    def serving(self) -> Iterator[Running]:
        """`torpor serve`, ready. Raises `NotReady`."""
        arguments = python("-m", "gateway.cli", "serve")
        with Child("torpor", arguments, log=self.folder / "serve.log", cwd=self.folder) as child:
            ready_s = child.wait_for(f"{self.url}/health/ready", _READY_S)
            endpoint = Endpoint(port=self.port, key=self.keys["TORPOR_API_KEY"])
            yield Running("torpor", endpoint, child, MODEL, ready_s)


def models_of(engine: Engine) -> str:
    """The ``[[models]]`` of a stand-in engine: with a fair queue and a price."""
    return (
        f'[[models]]\nid = "{MODEL}"\nurl = "{engine.url}/v1"\n'
        "max_running = 4096\nmax_concurrent = 4096\nmax_queued = 4096\n"
        f'[[prices]]\nmodel = "{MODEL}"\ninput = "1"\noutput = "2"\n'
    )


def prepare(folder: Path, models: str, sections: str = "") -> Site:
    """Write the configuration, make the keys. Everything is on; no limit is ever reached."""
    port, metrics_port = free_port(), free_port()
    (folder / "torpor.toml").write_text(
        f'[server]\nport = {port}\nlog_format = "json"\nlog_file = "torpor.log"\n'
        f"[metrics]\nport = {metrics_port}\n"
        f"[limits]\nrequests_per_minute = {_AMPLE}\ntokens_per_minute = {_AMPLE}\n"
        f"requests_per_day = {_AMPLE}\n{sections}\n{models}"
    )
    run(python("-m", "gateway.cli", "setup"), cwd=folder)
    lines = (folder / ".torpor/credentials.env").read_text().splitlines()
    keys = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    return Site(folder, port, metrics_port, keys)


def set_limits(site: Site) -> None:
    """Limits of the project and the key, and budgets, besides those of the configuration."""
    headers = {"authorization": f"Bearer {site.keys['TORPOR_ADMIN_KEY']}"}
    with httpx.Client(base_url=f"{site.url}/v1", headers=headers, trust_env=False, timeout=30) as http:
        project = _only(http, "/organization/projects")
        key = _only(http, f"/organization/projects/{project}/api_keys")
        sizes = {
            "max_requests_per_1_minute": _AMPLE,
            "max_tokens_per_1_minute": _AMPLE,
            "max_tokens_per_1_day": _AMPLE,
            "max_concurrent_requests": 100_000,
        }
        for kind, subject in (("project", project), ("key", key)):
            limit = {"subject_type": kind, "subject_id": subject, **sizes}
            http.post("/torpor/limits", json=limit).raise_for_status()
        budget = {"threshold_amount": _AMPLE_CENTS, "currency": "USD", "interval": "month"}
        for path in (f"/organization/projects/{project}/spend_limit", "/organization/spend_limit"):
            http.post(path, json=budget).raise_for_status()


def _only(http: httpx.Client, path: str) -> str:
    response = http.get(path)
    response.raise_for_status()
    return str(response.json()["data"][0]["id"])


@contextmanager
def _torpor(engine: Engine, folder: Path) -> Iterator[Running]:
    site = prepare(folder, models_of(engine), "[engines]\nsnapshots = false")
    with site.serving() as running:
        set_limits(site)
        yield running


TORPOR = Target("torpor", "tenant keys", "ledger", _torpor)

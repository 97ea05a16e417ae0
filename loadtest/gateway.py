"""The gateway that a benchmark starts: its folder, its configuration, its keys and its process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest.client import Endpoint
from loadtest.processes import REPOSITORY, Child, free_port, python, run

MODEL = "standin"
ADMIN_KEY, API_KEY, ROOT_KEY = "TORPOR_ADMIN_KEY", "TORPOR_API_KEY", "TORPOR_ROOT_KEY"
START_S = 180.0
TIMEOUT_S = 600.0
_END_S = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that is ready; ``child`` is its process, ``ready_s`` the seconds from its start."""

    name: str
    endpoint: Endpoint
    child: Child
    model: str = MODEL
    ready_s: float = 0.0


class Gateway:
    """A folder with Torpor's configuration, its data and its keys, and the process that serves it.

    ``text`` is the configuration; ``{port}``, ``{metrics_port}`` and ``{root}`` (the repository) are replaced
    in it. The constructor runs `torpor setup`. ``source``: a checkout of another version. ``module``: what is
    run to serve. Raises `NotReady`.
    """

    def __init__(
        self, folder: Path, text: str, source: Path = REPOSITORY, *, module: str = "gateway.cli"
    ) -> None:
        self.folder = folder
        self._module = module
        self._environment = {"PYTHONPATH": str(source)}
        self.port, self._metrics_port = free_port(), free_port()
        values = {"port": self.port, "metrics_port": self._metrics_port, "root": REPOSITORY}
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        (folder / "torpor.toml").write_text(text)
        self.torpor("setup")
        lines = (folder / ".torpor/credentials.env").read_text().splitlines()
        self.keys: Mapping[str, str] = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The base URL, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """The URL that Prometheus reads, if the configuration has ``{metrics_port}``."""
        return f"http://127.0.0.1:{self._metrics_port}/metrics"

    @property
    def database(self) -> Path:
        """The SQLite file with the ledger."""
        return self.folder / ".torpor/torpor.db"

    @property
    def child(self) -> Child:
        """The process of `torpor serve`; it was started last and may have ended."""
        assert self._child is not None, "the gateway was not started"
        return self._child

    def torpor(self, *arguments: str) -> str:
        """Run a command of `torpor` to its end; returns its output. Raises `NotReady`."""
        return run(python("-m", "gateway.cli", *arguments), cwd=self.folder, environment=self._environment)

    def start(self) -> Running:
        """Start `torpor serve`, and wait until it is ready. Raises `NotReady`."""
        arguments = python("-m", self._module, "serve")
        self._child = Child(
            "torpor",
            arguments,
            log=self.folder / "serve.log",
            cwd=self.folder,
            environment=self._environment,
        )
        ready_s = self._child.wait_for(f"{self.url}/health/ready", START_S)
        endpoint = Endpoint(port=self.port, key=self.keys[API_KEY])
        return Running("torpor", endpoint, self._child, ready_s=ready_s)

    def end(self) -> None:
        """End `torpor serve` and everything below it, if it was started."""
        if self._child is not None:
            self._child.end(_END_S)

    @contextmanager
    def serving(self) -> Iterator[Running]:
        """Run `torpor serve` while the `with` lasts. Raises `NotReady`."""
        try:
            yield self.start()
        finally:
            self.end()

    def request(self, method: str, path: str, body: Any = None, *, key: str = ROOT_KEY) -> Any:
        """Send a request with one of `keys`; returns its JSON. Raises `httpx.HTTPStatusError`."""
        response = self.http.request(method, path, headers=self.bearer(key), json=body)
        response.raise_for_status()
        return response.json()

    def bearer(self, key: str = API_KEY) -> dict[str, str]:
        """The header that authenticates as one of `keys`."""
        return {"authorization": f"Bearer {self.keys[key]}"}

    def tenant(self, name: str) -> str:
        """Create a project and a service account in it; returns the account's API key."""
        project = self.request("POST", "/v1/organization/projects", {"name": name}, key=ADMIN_KEY)["id"]
        path = f"/v1/organization/projects/{project}/service_accounts"
        value: str = self.request("POST", path, {"name": name}, key=ADMIN_KEY)["api_key"]["value"]
        return value

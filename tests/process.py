"""A real gateway in a process of its own, as an operator starts it, for the tests to talk to."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

REPOSITORY = Path(__file__).parents[1]
MODELS = Path(os.environ.get("TORPOR_MODELS", REPOSITORY / "models"))
CHAT_MODEL = "smollm2-135m"
EMBED_MODEL = "all-minilm-l6-v2"
READY_TIMEOUT_S = 60.0

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]

REAL_MODELS = f"""
[[models]]
id = "{CHAT_MODEL}"
source = "{MODELS / CHAT_MODEL}"
tool_parser = "hermes"
[models.lora]

[[models]]
id = "{EMBED_MODEL}"
source = "{MODELS / EMBED_MODEL}"
task = "embed"
kv_cache_gib = 0.25
"""


@dataclass
class Gateway:
    """A gateway that runs in ``folder``, with the keys of its demo tenant.

    It has no listener for metrics where the environment does not ask for one: they would share its port.
    """

    folder: Path
    port: int
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    keys: dict[str, str] = field(default_factory=dict)
    clients: list[OpenAI] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.environment = {"TORPOR_METRICS__ENABLED": "false", **self.environment}

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    @property
    def api_key(self) -> str:
        return self.keys["TORPOR_API_KEY"]

    @property
    def admin_key(self) -> str:
        return self.keys["TORPOR_ADMIN_KEY"]

    @property
    def root_key(self) -> str:
        return self.keys["TORPOR_ROOT_KEY"]

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def client(self, key: str | None = None, **options: object) -> OpenAI:
        """The official client, closed with the gateway."""
        settings: dict[str, object] = {"timeout": 180.0, "max_retries": 0, **options}
        client = OpenAI(base_url=self.base_url, api_key=key or self.api_key, **settings)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    def async_client(self, **options: object) -> AsyncOpenAI:
        """The official asynchronous client."""
        settings: dict[str, object] = {"timeout": 180.0, "max_retries": 0, **options}
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, **settings)  # type: ignore[arg-type]

    def http(self, key: str | None = None) -> httpx.Client:
        """A plain client with the project's key."""
        headers = {"authorization": f"Bearer {key or self.api_key}"}
        return httpx.Client(base_url=self.origin, headers=headers, timeout=180, trust_env=False)

    def torpor(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the command in the gateway's folder."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"torpor {' '.join(arguments)}: {done.stderr}")
        return done

    def start(self) -> None:
        """Start ``torpor serve`` and wait until it listens."""
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        with httpx.Client(trust_env=False) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise AssertionError(f"the gateway ended:\n{self.log}")
                try:
                    if client.get(f"{self.origin}/health/ready").is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
        raise AssertionError(f"the gateway did not listen in time:\n{self.log}")

    def engines(self) -> list[psutil.Process]:
        """Every process below the gateway."""
        assert self.process is not None
        below: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return below

    def end(self, signal_number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Signals the gateway, waits for its end and returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


def free_port() -> int:
    """A loopback port without a server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_gateway(
    folder: Path, models: str = REAL_MODELS, sections: str = "", *, snapshots: bool = False
) -> Iterator[Gateway]:
    """A gateway with a configuration of its own, ended with everything below it.

    ``snapshots``: its engines sleep in them. Else no test waits for one that is being made (1.4 GB).
    """
    port = free_port()
    engines = f'[engines]\ncriu = "{REPOSITORY / ".criu"}"\nsnapshots = {str(snapshots).lower()}\n'
    (folder / "torpor.toml").write_text(f"[server]\nport = {port}\n{sections}\n{engines}\n{models}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORPOR_")}
    environment = {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    if "[metrics]" in sections:
        environment["TORPOR_METRICS__ENABLED"] = "true"
    gateway = Gateway(folder, port, environment)
    gateway.torpor("setup")
    lines = (folder / ".torpor/credentials.env").read_text().splitlines()
    gateway.keys = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    gateway.start()
    try:
        yield gateway
    finally:
        for client in gateway.clients:
            client.close()
        if gateway.process is not None and gateway.process.poll() is None:
            gateway.end()

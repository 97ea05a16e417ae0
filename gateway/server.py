"""The gateway's process: listens, serves, and drains when it is asked to end."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette

from engines.errors import InvalidModel
from gateway.app import create_app, served
from gateway.config.sections import Config, ServerConfig
from gateway.engine_host import SandboxRequired, require_sandbox
from gateway.http.protocol import guarded_protocol
from gateway.listening import CannotListen, listen, listen_locally, origin_of
from gateway.services import Services
from gateway.storage.credentials import CredentialsFile
from gateway.storage.data_directory import DataDirectory
from gateway.storage.database import migrate
from gateway.storage.errors import DatabaseError
from gateway.telemetry.logs import LogFile, configure_logging
from gateway.telemetry.metrics import registry_of
from gateway.telemetry.metrics_server import MetricsServer
from metering.errors import InvalidTokenizer

_logger = logging.getLogger("torpor.server")
_AFTER_DRAIN_S = 5
# Objects, then collections of the younger generation. A request leaves next to nothing to a collection.
_COLLECT_AFTER = (20_000, 20, 20)


class StartFailed(Exception):
    """The gateway cannot start; the message is one line that says why and what to do."""


class GatewayServer(uvicorn.Server):
    """uvicorn's server; on shutdown it lets streams finish within the time to drain, then ends them."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: Starlette,
        data: DataDirectory,
        settings: Config,
        local: socket.socket,
        metrics: socket.socket | None = None,
    ) -> None:
        super().__init__(config)
        self._local_listener = local
        self._app = app
        self._data = data
        self._settings = settings
        self._metrics_listener = metrics
        self._metrics: MetricsServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Without TLS: the data directory says who the peer is, and no other user can listen in.
        protocol: Callable[[], asyncio.Protocol] = partial(
            self.config.http_protocol_class,  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        local = await asyncio.get_running_loop().create_unix_server(protocol, sock=self._local_listener)
        self.servers.append(local)
        self._announce((sockets or [])[0].getsockname()[1])
        if self._metrics_listener is not None and self.started:
            services: Services = self._app.state.services
            self._metrics = MetricsServer(registry_of(services.metric_sources()), self._metrics_listener)
            self._metrics.begin()
        # What has been made until now stays: no collection is to look through it again and again.
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)
        gc.enable()
        server = self._settings.server
        scheme = "https" if server.tls_certificate else "http"
        _logger.info("listening on %s://%s:%d", scheme, server.host, server.port)

    def _announce(self, port: int) -> None:
        """Tell the commands of this installation that the gateway is here, and where."""
        origin = origin_of(self._settings.server, port)
        try:
            CredentialsFile(self._data.credentials_file).follow(f"{origin}/v1")
        except OSError as error:
            _logger.warning("%s keeps an old address: %s", self._data.credentials_file, error.strerror)
        try:
            self._data.announce(port, origin)
        except OSError as error:
            _logger.error(
                "commands do not find this gateway: %s cannot be written: %s",
                self._data.pid_file,
                error.strerror,
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services: Services = self._app.state.services
        services.begin_drain()
        drain_s = self._settings.server.drain_timeout_s
        _logger.info("draining %d requests, %g s at most", len(services.running), drain_s)
        expiry = asyncio.get_running_loop().call_later(drain_s, services.expire)
        try:
            await super().shutdown(sockets)
        finally:
            expiry.cancel()
            if self._metrics is not None:
                await self._metrics.end()


def serve(config: Config, data: DataDirectory) -> None:
    """Serve until SIGINT or SIGTERM. The caller holds the data directory.

    Raises `StartFailed`.
    """
    gc.disable()  # until it listens: there is next to no garbage, and looking for it would take long
    server = config.server
    _configure_logging(server)
    try:
        require_sandbox(config, data)
        asyncio.run(migrate(config.storage.database_url()))
        app = create_app(config, data)
    except (DatabaseError, InvalidModel, InvalidTokenizer, SandboxRequired) as error:
        raise StartFailed(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StartFailed(f"the database cannot be opened: {reason}; check [storage] database") from error
    # uvicorn raises the signal again when it has drained; the process is to end with 0 then.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: None)
    with ExitStack() as listeners:
        metrics = None
        try:
            listener = listeners.enter_context(listen(server.host, server.port))
            if config.metrics.enabled:
                metrics = listeners.enter_context(listen(config.metrics.host, config.metrics.port, "metrics"))
            local = listeners.enter_context(listen_locally(data.socket))
        except CannotListen as error:
            raise StartFailed(str(error)) from error
        except OSError as error:
            raise StartFailed(f"cannot listen on {data.socket}: {error.strerror}") from error
        try:
            GatewayServer(_settings(server, app), app, data, config, local, metrics).run(sockets=[listener])
        finally:
            # Not before: also where the end was forced, the engines have ended by now.
            data.withdraw()


def _configure_logging(server: ServerConfig) -> None:
    file = None
    if server.log_file is not None:
        file = LogFile(server.log_file, server.log_file_bytes, server.log_files_kept)
    try:
        configure_logging(server.log_level, server.log_format, file)
    except OSError as error:
        raise StartFailed(
            f"the log {server.log_file} cannot be written: {error.strerror}; check [server] log_file"
        ) from None


def _settings(server: ServerConfig, app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        served(app),
        http=guarded_protocol(server.max_header_bytes, server.header_timeout_s),
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=round(server.keep_alive_s),
        timeout_graceful_shutdown=round(server.drain_timeout_s + _AFTER_DRAIN_S),
        proxy_headers=bool(server.trusted_proxies),
        forwarded_allow_ips=list(server.trusted_proxies),
        ssl_certfile=server.tls_certificate,
        ssl_keyfile=server.tls_key,
    )

"""What is known of a request while it is served, the headers made from it, and its line in the log."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.rate_limit_headers import rate_headers
from metering.types import Timings, Usage
from tenants.limits.admission import Standings
from tenants.types import Principal

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_logger = logging.getLogger("torpor.access")


@dataclass(slots=True)
class RequestRecord:
    """Facts of one request, filled in on its way. Durations in milliseconds, ``None`` where not reached.

    ``status`` is that of the answer, 0 before it has begun.
    """

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    started_at: float = field(default_factory=time.time)
    principal: Principal | None = None
    model: str | None = None
    adapter: str | None = None
    tier: str | None = None
    auth_ms: float | None = None
    queue_ms: float | None = None
    wake_ms: float | None = None
    ttft_ms: float | None = None
    usage: Usage | None = None
    outcome: str | None = None
    status: int = 0
    code: str | None = None
    refusal: str | None = None
    client_gone: bool = False
    standings: Callable[[], Standings] | None = None

    def elapsed_ms(self) -> float:
        """Milliseconds since the request's headers were read."""
        return (time.perf_counter() - self.started) * 1000

    def timings(self) -> Timings:
        """The durations as the ledger keeps them."""
        return Timings(
            queue_ms=self.queue_ms,
            wake_ms=self.wake_ms,
            ttft_ms=self.ttft_ms,
            total_ms=self.elapsed_ms(),
            tier=self.tier,
        )

    def server_timing(self) -> str:
        """The value of ``Server-Timing``: what is known by now."""
        durations = (
            ("auth", self.auth_ms),
            ("queue", self.queue_ms),
            ("wake", self.wake_ms),
            ("ttft", self.ttft_ms),
        )
        return ", ".join(f"{name};dur={value:.2f}" for name, value in durations if value is not None)

    def headers(self) -> dict[str, str]:
        """What every answer carries, as far as it is known by now."""
        headers = {
            "x-request-id": self.request_id,
            "openai-processing-ms": str(round(self.elapsed_ms())),
            "server-timing": self.server_timing(),
            "x-torpor-engine": self.tier,
        }
        present = {name: value for name, value in headers.items() if value}
        return present if self.standings is None else present | rate_headers(self.standings())

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The same in ASGI's form."""
        return [(name.encode(), value.encode("latin-1")) for name, value in self.headers().items()]


def record_of(scope: Scope) -> RequestRecord:
    """The record that `RequestContext` put into the scope."""
    record: RequestRecord = scope["state"]["record"]
    return record


class RequestContext:
    """The outermost ASGI layer: a request's record, the headers of its answer, and its line in the log.

    What the application could not handle ends here: it has answered (500) by then, and the log gets the
    stack under the request's id. ``observe`` is told how each request ended.
    """

    def __init__(
        self, app: ASGIApp, observe: Callable[[Scope, RequestRecord, int], None] | None = None
    ) -> None:
        self.app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(request_id(scope["headers"]))
        scope.setdefault("state", {})["record"] = record

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *record.raw_headers()]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            _logger.exception("a request failed", extra={"fields": {"request_id": record.request_id}})
            if not record.status:
                raise
        finally:
            ended = 499 if record.client_gone else record.status
            if "refused" in scope["state"]:  # by the server, which has answered in the application's place
                ended, record.code = scope["state"]["refused"]
            log_request(scope, record, ended)
            if self._observe is not None:
                self._observe(scope, record, ended)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own id, if it is a sane token, or a new one. Header names are in lower case."""
    for name, value in headers:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if _SANE_ID.fullmatch(given):
                return given
    return f"req_{random.getrandbits(128):032x}"


def log_request(scope: Scope, record: RequestRecord, status: int) -> None:
    """The request's one line in the log. Of the scope it takes what is there.

    The record is made here, because ``Logger.info`` would first look through the stack for its caller.
    """
    if not _logger.isEnabledFor(logging.INFO):
        return
    who, usage = record.principal, record.usage
    client = scope.get("client")
    fields = {
        "request_id": record.request_id,
        "method": scope.get("method"),
        "path": scope.get("path", "")[:256] or None,
        "status": status,
        "client": client[0] if client else None,
        "organization": who.organization_id if who else None,
        "project": who.project_id if who else None,
        "key": who.key_id if who else None,
        "model": record.model,
        "adapter": record.adapter,
        "outcome": record.outcome,
        "refusal": record.refusal,
        "input_tokens": usage.input_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "tier": record.tier,
        "queue_ms": _rounded(record.queue_ms),
        "wake_ms": _rounded(record.wake_ms),
        "ttft_ms": _rounded(record.ttft_ms),
        "total_ms": _rounded(record.elapsed_ms()),
    }
    line = logging.LogRecord(_logger.name, logging.INFO, __file__, 0, "request", None, None)
    line.fields = {name: value for name, value in fields.items() if value is not None}
    _logger.handle(line)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)

"""Answers to HTTP/1.0 requests, which uvicorn would send in chunks: RFC 9112, sections 6.1, 6.3 and 9.3."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_WITHOUT_BODY = (204, 304)


def until_close(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """The application for one HTTP/1.0 request.

    An answer without ``Content-Length`` is sent as it is and ends with the connection. One that has it leaves
    the connection open if the client asked for that (``Connection: keep-alive``).
    """

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        unbounded = False

        async def send_plain(message: Message) -> None:
            nonlocal unbounded
            if message["type"] == "http.response.start":
                names = [name for name, _ in message["headers"]]
                bodiless = scope["method"] == "HEAD" or message["status"] in _WITHOUT_BODY
                unbounded = b"content-length" not in names and not bodiless
                if unbounded:
                    cycle.chunked_encoding = cycle.keep_alive = False
                elif cycle.keep_alive and b"connection" not in names:
                    message["headers"] = [*message["headers"], (b"connection", b"keep-alive")]
            elif unbounded:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return served

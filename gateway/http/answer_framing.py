"""How answers end where uvicorn leaves it to the application: RFC 9112, sections 6.1, 6.3 and 9.3."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_WITHOUT_BODY = (204, 304)


def until_close(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """The application for one HTTP/1.0 request, which uvicorn would answer in chunks.

    An answer without ``Content-Length`` is sent as it is and ends with the connection. One that has it leaves
    the connection open if the client asked for that (``Connection: keep-alive``).
    """

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        unbounded = False

        async def send_plain(message: Message) -> None:
            nonlocal unbounded
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                names = [name for name, _ in headers]
                bodiless = scope["method"] == "HEAD" or message["status"] in _WITHOUT_BODY
                unbounded = b"content-length" not in names and not bodiless
                if unbounded:
                    cycle.chunked_encoding = cycle.keep_alive = False
                elif cycle.keep_alive and b"connection" not in names:
                    message["headers"] = [*headers, (b"connection", b"keep-alive")]
            elif unbounded:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return served


def closing_unless_continued(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """The application for one request with ``Expect: 100-continue``.

    A client that is answered before it was told to continue may leave the body out. What it sends next must
    not be taken for the body (RFC 9110, section 10.1.1), so the connection ends with the answer.
    """

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if cycle.waiting_for_100_continue and cycle.more_body:
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, send_and_close)

    return served

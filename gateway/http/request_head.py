"""Checks of a request's head that the HTTP parser leaves out: RFC 9112, sections 2.3, 3.2, 6.1 and 9.3."""

import re
from collections.abc import Iterable

from gateway.http.errors import ApiError, invalid_request, unsupported

Headers = list[tuple[bytes, bytes]]
CODE = "invalid_http"
"""The error code of a request that is not HTTP as this gateway accepts it."""
_VERSIONS = ("1.1", "1.0")
_SINGLE = (b"host", b"content-type")
"""Fields of which a second line would leave it open which one counts."""
# ``uri-host [ ":" port ]`` of RFC 3986; empty where the target has no authority (RFC 9110, section 7.2).
_HOST = re.compile(
    rb"(?: \[ [\w.~!$&'()*+,;=:-]+ \] | (?: [\w.~!$&'()*+,;=-] | %[0-9A-Fa-f]{2} )* ) (?: : [0-9]* )?",
    re.ASCII | re.VERBOSE,
)


def framing_error(version: str, method: bytes, headers: Headers) -> ApiError | None:
    """Why the end of the request, or its protocol, cannot be known: the connection has to end with it."""
    if version not in _VERSIONS:
        return invalid_request(f"HTTP/{version} is not supported. Use HTTP/1.1.", code=CODE)
    if method == b"CONNECT":
        return invalid_request("CONNECT is not supported: this gateway is not a proxy.", code=CODE)
    for name, value in headers:
        if name == b"transfer-encoding":
            return _transfer_error(version, value.strip().lower())
    return None


def _transfer_error(version: str, coding: bytes) -> ApiError | None:
    """The parser itself refuses a second line, and any beside ``Content-Length``."""
    if version == "1.0":
        return invalid_request("An HTTP/1.0 request must not have a Transfer-Encoding.", code=CODE)
    if coding == b"chunked":
        return None
    if coding.endswith(b"chunked"):
        return unsupported("This Transfer-Encoding is not supported. Send 'chunked' alone.")
    return invalid_request("The Transfer-Encoding of a request must be 'chunked'.", code=CODE)


def head_error(version: str, headers: Headers) -> ApiError | None:
    """Why the request cannot be served although its end is known."""
    names = [name for name, _ in headers]
    for name in _SINGLE:
        if names.count(name) > 1:
            display_name = name.decode().title()
            return invalid_request(
                f"The request has more than one {display_name} header. Send one.", code=CODE
            )
    if b"host" not in names:
        if version == "1.0":
            return None
        return invalid_request("An HTTP/1.1 request must have a Host header.", code=CODE)
    if _HOST.fullmatch(headers[names.index(b"host")][1].strip()) is None:
        return invalid_request("The Host header is not a valid host and port.", code=CODE)
    return None


def without_upgrade(
    method: bytes, target: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The head without its offer of another protocol, which a server may ignore (RFC 9110, section 7.8)."""
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    lines += [b"%b: %b" % (name, value) for name, value in headers if name != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])

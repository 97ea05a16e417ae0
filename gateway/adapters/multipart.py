"""A multipart upload, streamed to disk: what is in memory is the piece that has just arrived.

The form is RFC 7578's, read by python-multipart, which Starlette uses too. Starlette's own ``form()`` would
spool whole parts to /tmp, of any size.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from gateway.http.content_encoding import refuse_encoded
from gateway.http.errors import ApiError, invalid_request

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 1024
_OVERHEAD_BYTES = 64 * 1024
"""Of a body: the boundaries, headers and fields around its files."""
_WRITE_BYTES = 1024 * 1024
_SILENCE_S = 30.0
_LINGER_S = 5.0
_MAX_BOUNDARY_BYTES = 200


@dataclass(frozen=True, slots=True)
class Form:
    """What an upload may hold: fields by name, and the most bytes of each file."""

    fields: frozenset[str]
    files: Mapping[str, int]
    timeout_s: float

    @property
    def most_bytes(self) -> int:
        """The most bytes of a body."""
        return sum(self.files.values()) + _OVERHEAD_BYTES


@dataclass(slots=True)
class Upload:
    """Fields as texts, and where the files were written, each by the name of its part."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


async def receive(request: Request, form: Form, folder: Path) -> Upload:
    """Read the whole body; files go to the folder, under the names of their parts.

    Raises `ApiError`: 415 for another content type or any content encoding, 413 for what is too large, 408
    for what is too slow, 400 for a body that is not such a form; ``ClientDisconnect``; and OSError where the
    disk fails. What is wrong with single parts is told when all of the body has been read. Where it is not,
    what still comes is passed over for a while: a client that is sending when the connection is closed would
    not see the answer.
    """
    declared = request.headers.get("content-length", "")
    async with aclosing(request.stream()) as stream:
        try:
            refuse_encoded(request.scope)
            boundary = _boundary(request)
            if declared.isdecimal() and int(declared) > form.most_bytes:
                raise _too_large(form.most_bytes)
            with ExitStack() as files:
                reader = _Reader(form, folder, files)
                await _feed(stream, MultipartParser(boundary, reader.callbacks()), reader, form)
        except FormParserError:
            await _pass_over(stream)
            raise _malformed() from None
        except ApiError:
            await _pass_over(stream)
            raise
    return reader.result()


async def _feed(
    stream: AsyncGenerator[bytes], parser: MultipartParser, reader: "_Reader", form: Form
) -> None:
    deadline = time.monotonic() + form.timeout_s
    total = 0
    while True:
        patience_s = min(_SILENCE_S, deadline - time.monotonic())
        try:
            async with asyncio.timeout(patience_s):
                piece = await anext(stream, None)
        except TimeoutError:
            raise _too_slow() from None
        if piece is None:
            break
        total += len(piece)
        if total > form.most_bytes:
            raise _too_large(form.most_bytes)
        parser.write(piece)
        if reader.waiting_bytes >= _WRITE_BYTES:
            await asyncio.to_thread(reader.write)
    await asyncio.to_thread(reader.write)


async def _pass_over(stream: AsyncGenerator[bytes]) -> None:
    """Read on, and keep nothing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            async for _ in stream:
                pass


class _Reader:
    """What the parser calls. It only collects; `write` writes, in a thread.

    It has many attributes because the parser's callbacks share the state of the part that is being read.
    """

    def __init__(self, form: Form, folder: Path, stack: ExitStack) -> None:
        self._form = form
        self._folder = folder
        self._stack = stack
        self._upload = Upload()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._text: bytearray | None = None
        self._file: BinaryIO | None = None
        self._file_bytes = 0
        self._waiting: list[tuple[BinaryIO, bytes]] = []
        self._fault: ApiError | None = None
        self._ended = False
        self.waiting_bytes = 0

    def callbacks(self) -> "MultipartCallbacks":
        """By the names that the parser has for them."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def write(self) -> None:
        """Write what has been collected to the files that it belongs to."""
        for file, data in self._waiting:
            file.write(data)
        self._waiting.clear()
        self.waiting_bytes = 0

    def result(self) -> Upload:
        """Return the complete upload. Raises `ApiError` for the first fault."""
        if self._fault is not None:
            raise self._fault
        if not self._ended:
            raise _malformed()
        return self._upload

    def _begin(self) -> None:
        self._disposition = b""
        self._text = self._file = None

    def _header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        name, excerpt = self._name, self._name[:64]
        if name in self._upload.fields or name in self._upload.files:
            self._found(
                invalid_request(f"There are two parts named '{excerpt}'.", excerpt, "invalid_multipart")
            )
        elif name in self._form.fields:
            self._text = bytearray()
            self._upload.fields[name] = ""
        elif name in self._form.files:
            path = self._upload.files[name] = self._folder / name
            self._file = self._stack.enter_context(path.open("xb"))
            self._file_bytes = 0
        else:
            parts = ", ".join([*sorted(self._form.fields), *self._form.files])
            message = f"Unknown parameter: '{excerpt}'. Known are {parts}."
            self._found(invalid_request(message, excerpt, "unknown_parameter"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        size = end - start
        if self._text is not None:
            self._text += data[start:end]
            if len(self._text) > MAX_FIELD_BYTES:
                message = f"'{self._name}' has more than {MAX_FIELD_BYTES} bytes."
                self._found(invalid_request(message, self._name, "invalid_value"))
                self._text = None
        elif self._file is not None:
            self._file_bytes += size
            most = self._form.files[self._name]
            if self._file_bytes > most:
                raise _too_large(most, self._name)
            self._waiting.append((self._file, data[start:end]))
            self.waiting_bytes += size

    def _part_end(self) -> None:
        if self._text is None:
            return
        try:
            self._upload.fields[self._name] = self._text.decode()
        except UnicodeDecodeError:
            message = f"'{self._name}' must be text in UTF-8."
            self._found(invalid_request(message, self._name, "invalid_value"))

    def _end(self) -> None:
        self._ended = True

    def _found(self, fault: ApiError) -> None:
        self._fault = self._fault or fault


def _boundary(request: Request) -> bytes:
    given = request.headers.get("content-type", "")
    kind, options = parse_options_header(given)
    if kind != b"multipart/form-data":
        excerpt = given.partition(";")[0][:80] or "none"
        raise ApiError(
            415,
            "invalid_request_error",
            "unsupported_media_type",
            f"The body must be sent with 'Content-Type: multipart/form-data', not {excerpt!r}.",
            headers={"connection": "close"},
        )
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES:
        raise _malformed()
    return boundary


def _malformed() -> ApiError:
    message = "The body is not a complete multipart form."
    headers = {"connection": "close"}
    return ApiError(400, "invalid_request_error", "invalid_multipart", message, headers=headers)


def _too_large(limit: int, part: str | None = None) -> ApiError:
    what = "The body" if part is None else f"'{part}'"
    message = f"{what} is larger than {limit} bytes, the most that this gateway accepts."
    headers = {"connection": "close"}
    return ApiError(413, "invalid_request_error", "request_too_large", message, part, headers)


def _too_slow() -> ApiError:
    message = "The upload did not arrive in time."
    headers = {"connection": "close"}
    return ApiError(408, "invalid_request_error", "request_timeout", message, headers=headers)

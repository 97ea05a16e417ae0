"""Short calls to an engine's Unix socket, a connection each.

They read until the engine has closed the connection: when a call has returned, nothing of it is left in the
engine, which could not be dumped with a connection open. (A connection's far end belongs to the network
namespace of the process that connected: CRIU, inside the engine's, does not find it.)
"""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

from engines import unix_socket
from engines.errors import EngineBroken


async def call(
    socket: Path, method: str, path: str, value: Any = None, *, timeout_s: float
) -> tuple[int, Any]:
    """The status and the JSON value (None if it is not JSON) of the answer. Raises `EngineBroken`."""
    body = b"" if value is None else json.dumps(value).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n"
        f"x-request-id: torpor-{secrets.token_hex(8)}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(timeout_s):
            connection = await unix_socket.connect(socket)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            try:
                writer.write(head.encode() + body)
                answer = await reader.read(-1)
            finally:
                writer.close()
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        status = int(head_bytes.split(b" ", 2)[1])
        is_json = b"\r\ncontent-type: application/json" in head_bytes.lower()
        return status, json.loads(content) if is_json and content else None
    except TimeoutError as error:
        raise EngineBroken(f"the engine did not answer {path} within {timeout_s:g} s") from error
    except (ConnectionError, IndexError) as error:
        raise EngineBroken(f"the engine closed the connection before it answered {path}") from error
    except (OSError, ValueError) as error:
        raise EngineBroken(f"the engine did not answer {path}: {type(error).__name__}") from error

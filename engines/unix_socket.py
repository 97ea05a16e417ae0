"""Connecting to an engine's Unix socket without following links.

The socket lies in a folder that the engine may write to. A link in its place would lead the host to another
engine's socket, and one tenant's request to another's engine.
"""

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path


async def connect(path: str | Path) -> socket.socket:
    """A connected, non-blocking stream socket. Raises OSError, also if ``path`` is a link or another file."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, "the engine's socket was replaced by a link or another file")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, f"/proc/self/fd/{descriptor}")
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        os.close(descriptor)

"""What a connection tells an exchange beyond ASGI, where the server is the gateway's own.

ASGI tells that the client is gone to whoever waits in ``receive``, which takes a task for each request, and
does not tell whether a ``send`` may have to wait.
"""

from collections.abc import Callable
from typing import Protocol

from starlette.types import Scope

_NAME = "torpor.link"


class ClientLink(Protocol):
    """The connection that a request came on. ``on_gone`` is called once, when it is lost."""

    on_gone: Callable[[], None] | None

    @property
    def congested(self) -> bool:
        """Whether the client takes less than it is sent, so that the next ``send`` waits."""

    @property
    def body_here(self) -> bool:
        """Whether all of the request has arrived, so that ``receive`` does not wait."""


def put_link(scope: Scope, link: ClientLink) -> None:
    """For `link_of`, in the request's scope."""
    scope["extensions"] = {_NAME: link}


def link_of(scope: Scope) -> ClientLink | None:
    """The connection of a request, where its server has told."""
    link: ClientLink | None = scope.get("extensions", {}).get(_NAME)
    return link

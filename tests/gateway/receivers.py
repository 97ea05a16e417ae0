"""Who is told by spend alerts: a receiver of webhooks and an SMTP server, both on loopback."""

import asyncio
import base64
import hashlib
import hmac
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Arrival:
    """One request, and when it came."""

    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    def verified(self, secret: str) -> bool:
        """Whether the signature is the specification's."""
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        stamp = self.headers["webhook-timestamp"]
        content = f"{self.headers['webhook-id']}.{stamp}.".encode() + self.body
        expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        return self.headers["webhook-signature"] == f"v1,{expected}" and abs(time.time() - int(stamp)) < 60


@dataclass
class Receiver:
    """Answers with ``statuses`` one after the other, then with 204."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int) -> None:
        """Until so many have come."""
        deadline = time.monotonic() + 20
        while len(self.arrivals) < count:
            assert time.monotonic() < deadline, self.arrivals
            time.sleep(0.01)


@contextmanager
def receiving(*statuses: int, certificate: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that runs in a thread of its own, by HTTPS where it has a certificate."""
    receiver = Receiver(statuses=list(statuses))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", receiver.url)
            self.send_header("content-length", "0")
            self.end_headers()
            receiver.arrivals.append(Arrival({k.lower(): v for k, v in self.headers.items()}, body))

        def handle(self) -> None:
            # Who does not trust the certificate hangs up.
            with suppress(ConnectionError, ssl.SSLError):
                super().handle()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        if certificate is not None:
            server.socket = certificate.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Mail:
    """One mail, as it came."""

    sender: str
    recipients: list[str]
    text: str
    encrypted: bool
    login: str | None


@dataclass
class MailServer:
    """An SMTP server: takes mails after it has refused ``refusals`` of them with a 451."""

    certificate: ssl.SSLContext | None
    refusals: int = 0
    port: int = 0
    mails: list[Mail] = field(default_factory=list)
    unknown: frozenset[str] = frozenset()

    async def session(  # noqa: C901 - a table, in the order of the commands
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """RFC 5321, with STARTTLS (RFC 3207) and AUTH PLAIN (RFC 4954)."""
        encrypted, login, sender = False, None, ""
        recipients: list[str] = []

        def say(line: str) -> None:
            writer.write(line.encode() + b"\r\n")

        say("220 mail.test ESMTP")
        while line := (await reader.readline()).decode().rstrip("\r\n"):
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    say("250-mail.test")
                    say("250 AUTH PLAIN" if encrypted or not self.certificate else "250 STARTTLS")
                case "STARTTLS":
                    assert self.certificate is not None
                    say("220 go ahead")
                    await writer.drain()
                    await writer.start_tls(self.certificate)
                    encrypted = True
                case "AUTH":
                    login = base64.b64decode(rest.removeprefix("PLAIN ")).decode()
                    say("235 welcome")
                case "MAIL":
                    sender = rest.partition("<")[2].partition(">")[0]
                    recipients.clear()
                    say("250 ok")
                case "RCPT":
                    recipient = rest.partition("<")[2].partition(">")[0]
                    if recipient in self.unknown:
                        say("550 nobody")
                    else:
                        recipients.append(recipient)
                        say("250 ok")
                case "DATA" if self.refusals:
                    self.refusals -= 1
                    say("451 later")
                case "DATA":
                    say("354 go on")
                    text = (await reader.readuntil(b"\r\n.\r\n"))[:-5].decode()
                    self.mails.append(Mail(sender, list(recipients), text, encrypted, login))
                    say("250 taken")
                case "RSET":
                    say("250 ok")
                case "QUIT":
                    say("221 bye")
                    break
                case _:
                    say("502 what")
        writer.close()


@asynccontextmanager
async def mail_server(
    certificate: ssl.SSLContext | None = None, *, refusals: int = 0
) -> AsyncIterator[MailServer]:
    """The server on a port of its own."""
    mail = MailServer(certificate, refusals)
    async with await asyncio.start_server(mail.session, "127.0.0.1", 0) as server:
        mail.port = server.sockets[0].getsockname()[1]
        yield mail

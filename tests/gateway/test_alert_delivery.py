"""Alerts that fire, and those who are told: over real HTTP and SMTP, through failures and restarts."""

import asyncio
import base64
import email
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from gateway.alerts.config import AlertsConfig, alerts_fault
from gateway.alerts.delivery import Deliveries
from gateway.alerts.service import open_alerts
from gateway.alerts.webhooks import is_public, shown_secret, signature
from gateway.price_config import PriceConfig
from tenants.alert_tables import alert_notifications
from tenants.budgets import CENT, Budgets, Crossing
from tenants.errors import StorageUnavailable
from tenants.outbox import Outbox
from tests.engines.support import eventually
from tests.gateway.limits_stage import Stage, stage_at
from tests.gateway.receivers import Receiver, mail_server, receiving
from tests.process import REPOSITORY

PRICES = [PriceConfig(model="near", input=Decimal(1000), cached_input=Decimal(500), output=Decimal(2000))]
COST_CENTS = 5
"""Of one answer of the stand-in: 5.1 cents."""
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
QUICK = AlertsConfig(allow_private_addresses=True, retry_base_s=0.05, timeout_s=2.0)


@asynccontextmanager
async def _stage(
    folder: Path, standin: str, alerts: AlertsConfig = QUICK, **environment: str
) -> AsyncIterator[Stage]:
    async with stage_at(folder, standin, prices=PRICES, alerts=alerts, environment=environment) as opened:
        yield opened


@pytest.fixture
async def stage(tmp_path: Path, standin: str) -> AsyncIterator[Stage]:
    async with _stage(tmp_path, standin) as opened:
        yield opened


async def _alert(
    stage: Stage, cents: int, channel: dict[str, Any], of: str = "project"
) -> tuple[str, dict[str, Any]]:
    """The path and the object of a new alert."""
    path = "/v1/organization/spend_alerts"
    if of == "project":
        path = f"/v1/organization/projects/{stage.tenant.project_id}/spend_alerts"
    body = {
        "threshold_amount": cents,
        "currency": "USD",
        "interval": "month",
        "notification_channel": channel,
    }
    answer = await stage.admin.post(path, json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return f"{path}/{made['id']}", made


def _hook(receiver: Receiver) -> dict[str, Any]:
    return {"type": "webhook", "url": receiver.url}


async def _rows(stage: Stage) -> list[Any]:
    async with stage.services.database.connect() as connection:
        statement = select(alert_notifications).order_by(alert_notifications.c.created_ms)
        return list((await connection.execute(statement)).mappings())


async def _over(stage: Stage, count: int) -> list[Any]:
    """The outbox, as soon as so many notifications are delivered or given up."""
    for _ in range(1000):
        rows = await _rows(stage)
        if sum(row["next_attempt_ms"] is None for row in rows) >= count:
            return rows
        await asyncio.sleep(0.01)
    raise AssertionError(rows)


async def test_a_webhook_is_signed_and_told_once_although_it_fails_at_first(stage: Stage) -> None:
    with receiving(500, 503, 302) as receiver:
        _, made = await _alert(stage, COST_CENTS, _hook(receiver))
        assert (await stage.ask(max_tokens=20)).status_code == 200
        (row,) = await _over(stage, 1)
        for _ in range(3):
            assert (await stage.ask(max_tokens=20)).status_code == 200
        await asyncio.sleep(0.1)
    assert (row["attempts"], row["error"]) == (4, None)
    assert row["delivered_ms"] is not None
    assert len(receiver.arrivals) == 4
    assert {arrival.headers["webhook-id"] for arrival in receiver.arrivals} == {row["id"]}
    assert all(arrival.verified(made["notification_channel"]["secret"]) for arrival in receiver.arrivals)
    assert len({arrival.body for arrival in receiver.arrivals}) == 1
    waits = [b.at - a.at for a, b in zip(receiver.arrivals, receiver.arrivals[1:], strict=False)]
    assert all(wait >= 0.5 * 0.05 * 3**number for number, wait in enumerate(waits)), waits
    event = json.loads(receiver.arrivals[0].body)
    assert event["type"] == "spend_alert.triggered"
    assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
    assert event["data"] == {
        "alert_id": made["id"],
        "organization_id": stage.tenant.organization_id,
        "project_id": stage.tenant.project_id,
        "threshold_amount": COST_CENTS,
        "spent_amount": COST_CENTS,
        "currency": "USD",
        "interval": "month",
        "month": datetime.now(UTC).strftime("%Y-%m"),
    }


async def test_each_threshold_once_a_month(stage: Stage) -> None:
    with receiving() as receiver:
        path, made = await _alert(stage, COST_CENTS, _hook(receiver), of="organization")
        await _alert(stage, 100 * COST_CENTS, _hook(receiver))
        assert (await stage.ask(max_tokens=20)).status_code == 200
        await _over(stage, 1)
        body = {**made, "notification_channel": _hook(receiver)}
        del body["id"], body["object"]
        # The same threshold again is told already; another one that the spend has reached is told at once.
        assert (await stage.admin.post(path, json=body)).status_code == 200
        assert (await stage.admin.post(path, json={**body, "threshold_amount": 4})).status_code == 200
        rows = await _over(stage, 2)
        assert sorted(row["threshold_cents"] for row in rows) == [4, COST_CENTS]
        # In the next month all begins anew.
        budgets = stage.control.budgets
        month_start = datetime.fromtimestamp(budgets.month_start(), UTC)
        following = (month_start + timedelta(days=40)).timestamp()
        budgets.clock = lambda: following
        assert (await stage.ask(max_tokens=20)).status_code == 200
        assert (await stage.ask(max_tokens=20)).status_code == 200
        rows = await _over(stage, 3)
        await asyncio.sleep(0.1)
        assert [row["month"] for row in rows] == [int(month_start.timestamp())] * 2 + [budgets.month_start()]
    assert len(receiver.arrivals) == 3


async def test_two_gateways_tell_once(stage: Stage) -> None:
    """Both see the spend pass the threshold at the same time."""
    data_pepper = b"p" * 32
    with receiving() as receiver:
        for cents in range(1, 9):
            await _alert(stage, cents, _hook(receiver))
        subject = stage.tenant.project_id
        budgets = [Budgets() for _ in range(3)]
        gateways = [
            open_alerts(stage.services.database, QUICK, data_pepper, {}, each, None) for each in budgets
        ]
        async with gateways[0], gateways[1], gateways[2]:
            assert await eventually(lambda: all(each._thresholds for each in budgets))
            for each in budgets:
                assert each.on_crossing is not None
                each.on_crossing(Crossing(subject, 8, 8 * CENT))
            rows = await _over(stage, 8)
            await asyncio.sleep(0.1)
    assert len(rows) == 8
    assert [row["attempts"] for row in rows] == [1] * 8
    assert sorted(arrival.headers["webhook-id"] for arrival in receiver.arrivals) == sorted(
        row["id"] for row in rows
    )


async def test_what_another_gateway_has_settled_counts(stage: Stage) -> None:
    """The ledger knows; this gateway's own budgets do not."""
    with receiving() as receiver:
        await _alert(stage, 3 * COST_CENTS, _hook(receiver))
        unseen = Budgets()
        own, stage.control.admissions._budgets = stage.control.admissions._budgets, unseen
        for _ in range(3):
            assert (await stage.ask(max_tokens=20)).status_code == 200
        assert own.spent(stage.tenant.project_id) == 0
        assert not await _rows(stage)
        stage.services.alerts.watch(own, stage.services.alerts._read)
        (row,) = await _over(stage, 1)
        assert (row["threshold_cents"], row["spent_cents"]) == (3 * COST_CENTS, 15)


async def test_an_attempt_that_was_cut_off_is_made_again(stage: Stage) -> None:
    """The gateway ended while it waited for the receiver: what it had taken is due again after a while."""
    with receiving() as receiver:
        await _alert(stage, 1, _hook(receiver))
        outbox = Outbox(stage.services.tenants.storage)
        assert await outbox.fire(stage.tenant.project_id, 0, 1, 1000) == 1
        assert await outbox.fire(stage.tenant.project_id, 0, 1, 1001) == 0
        (taken,) = await outbox.take(1000, 9000, 8)
        assert (taken.attempts, taken.subject_name) == (1, "web")
        assert await outbox.take(8999, 20000, 8) == []
        assert await outbox.next_attempt_ms() == 9000
        (again,) = await outbox.take(9000, 20000, 8)
        assert (again.id, again.attempts) == (taken.id, 2)
        await outbox.settle(again.id, 9001, None, None)
        assert await outbox.next_attempt_ms() is None
        assert await outbox.take(10**15, 10**16, 8) == []


@pytest.mark.parametrize("status", [410, 500])
async def test_in_the_end_it_is_given_up(tmp_path: Path, standin: str, status: int) -> None:
    config = AlertsConfig(allow_private_addresses=True, retry_base_s=0.01, timeout_s=2.0, max_attempts=3)
    async with _stage(tmp_path, standin, config) as stage:
        with receiving(*[status] * 9) as receiver:
            await _alert(stage, 1, _hook(receiver))
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await _over(stage, 1)
            await asyncio.sleep(0.1)
    assert len(receiver.arrivals) == row["attempts"] == (1 if status == 410 else 3)
    assert (row["delivered_ms"], row["error"]) == (None, f"the receiver answered {status}")


async def test_a_database_that_was_away_loses_no_alert(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fire, failures = Outbox.fire, 0

    async def failing(self: Outbox, *arguments: Any) -> int:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise StorageUnavailable("the database is unavailable")
        return await fire(self, *arguments)

    with receiving() as receiver:
        await _alert(stage, COST_CENTS, _hook(receiver))
        stage.services.alerts._loop._after_failure_s = 0.02
        monkeypatch.setattr(Outbox, "fire", failing)
        assert (await stage.ask(max_tokens=20)).status_code == 200
        await _over(stage, 1)
    assert failures == 3
    told = [record.message for record in caplog.records if record.name == "torpor.alerts"]
    assert told[:2] == ["spend alerts wait: the database is unavailable", "spend alerts go on"]


async def test_a_deleted_alert_tells_nothing_more(stage: Stage) -> None:
    with receiving(*[500] * 99) as receiver:
        path, _ = await _alert(stage, 1, _hook(receiver))
        assert (await stage.ask(max_tokens=20)).status_code == 200
        assert await eventually(lambda: bool(receiver.arrivals))
        assert (await stage.admin.delete(path)).status_code == 200
        (row,) = await _over(stage, 1)
    assert (row["delivered_ms"], row["error"]) == (None, "the alert was deleted")


async def test_a_name_of_a_private_address_is_refused_when_it_is_told(tmp_path: Path, standin: str) -> None:
    """Of ``127.1`` only the resolver knows what it is, as of a name whose owner changes it."""
    config = AlertsConfig(retry_base_s=0.01, timeout_s=2.0, max_attempts=2)
    async with _stage(tmp_path, standin, config) as stage:
        with receiving() as receiver:
            await _alert(stage, 1, {"type": "webhook", "url": f"http://127.1:{receiver.port}/hook"})
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await _over(stage, 1)
    assert not receiver.arrivals
    assert (row["attempts"], row["delivered_ms"]) == (2, None)
    assert row["error"] == "the receiver has a private address, which [alerts] does not allow"


async def test_a_receiver_that_never_answers_holds_nobody_up(tmp_path: Path, standin: str) -> None:
    async def mute(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    ended = asyncio.Event()
    config = AlertsConfig(allow_private_addresses=True, retry_base_s=60.0, timeout_s=0.2)
    async with (
        await asyncio.start_server(mute, "127.0.0.1", 0) as silent,
        _stage(tmp_path, standin, config) as stage,
    ):
        port = silent.sockets[0].getsockname()[1]
        with receiving() as receiver:
            await _alert(stage, 1, {"type": "webhook", "url": f"http://127.0.0.1:{port}/"})
            await _alert(stage, 2, _hook(receiver))
            assert (await stage.ask(max_tokens=20)).status_code == 200
            await _over(stage, 1)
            assert len(receiver.arrivals) == 1
            await asyncio.sleep(0.3)
            told = {row["threshold_cents"]: row["error"] for row in await _rows(stage)}
        ended.set()
    assert told == {1: "no answer within 0.2 s", 2: None}


def _certificate(folder: Path, host: x509.GeneralName = LOOPBACK) -> tuple[Path, ssl.SSLContext]:
    """Of a server on loopback: the file to trust, and what the server is started with."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "mail.pem", folder / "mail.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, private)
    return pem, context


@pytest.mark.parametrize(("host", "delivered"), [("localhost", True), ("elsewhere.test", False)])
async def test_https_is_checked_by_the_name_although_the_address_is_what_is_dialled(
    tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch, host: str, delivered: bool
) -> None:
    pem, context = _certificate(tmp_path, x509.DNSName(host))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    config = AlertsConfig(allow_private_addresses=True, max_attempts=1)
    async with _stage(tmp_path, standin, config) as stage:
        with receiving(certificate=context) as receiver:
            url = f"https://localhost:{receiver.port}/hook"
            await _alert(stage, COST_CENTS, {"type": "webhook", "url": url})
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await _over(stage, 1)
    assert len(receiver.arrivals) == delivered
    if delivered:
        assert receiver.arrivals[0].headers["host"] == f"localhost:{receiver.port}"
    else:
        assert row["error"] == "the receiver could not be reached: ConnectError"


async def test_mail_goes_encrypted_to_all_after_the_server_was_busy(
    tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, context = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    async with mail_server(context, refusals=2) as mail:
        mail.unknown = frozenset({"gone@example.com"})
        config = AlertsConfig(
            smtp_host="127.0.0.1", smtp_port=mail.port, smtp_from="torpor@example.com", smtp_user="torpor",
            smtp_password_env="MAIL_PASSWORD", retry_base_s=0.02,
        )  # fmt: skip
        async with _stage(tmp_path, standin, config, MAIL_PASSWORD="open sesame") as stage:
            recipients = ["a@example.com", "gone@example.com", "b@example.com"]
            channel = {"type": "email", "recipients": recipients, "subject_prefix": "Gr\u00fc\u00dfe"}
            await _alert(stage, COST_CENTS, channel)
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await _over(stage, 1)
    assert (row["attempts"], row["error"]) == (3, None)
    (sent,) = mail.mails
    assert (sent.sender, sent.recipients) == ("torpor@example.com", ["a@example.com", "b@example.com"])
    assert sent.encrypted
    assert sent.login == "\0torpor\0open sesame"
    message: Message = email.message_from_string(sent.text)
    subject = str(email.header.make_header(email.header.decode_header(message["subject"])))
    assert subject == "Gr\u00fc\u00dfe: the project web has spent $0.05 this month"
    assert message["message-id"] == f"<{row['id']}@example.com>"
    assert message["to"] == ", ".join(recipients)
    text = str(message.get_payload())
    assert f"The project web ({stage.tenant.project_id})" in text
    assert "Threshold:  $0.05" in text


@pytest.mark.parametrize("trusted", [True, False])
async def test_mail_is_not_sent_in_the_clear(tmp_path: Path, standin: str, trusted: bool) -> None:
    """Neither to a server without STARTTLS nor to one whose certificate nobody trusts."""
    _, context = _certificate(tmp_path)
    async with mail_server(None if trusted else context) as mail:
        config = AlertsConfig(
            smtp_host="127.0.0.1", smtp_port=mail.port, smtp_from="t@example.com", max_attempts=1
        )
        async with _stage(tmp_path, standin, config) as stage:
            await _alert(stage, COST_CENTS, {"type": "email", "recipients": ["a@example.com"]})
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await _over(stage, 1)
    assert not mail.mails
    assert row["error"].startswith("the SMTP server did not take the mail: ")


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True), st.floats(0.001, 3600))
def test_waits_grow_within_bounds(attempts: int, spread: float, base: float) -> None:
    def waits(part: Callable[[], float]) -> float:
        config = AlertsConfig(retry_base_s=base)
        return Deliveries(Outbox(None), {}, config, spread=part).delay_s(attempts)  # type: ignore[arg-type]

    longest = min(6 * 3600.0, base * 3.0 ** min(attempts - 1, 64))
    assert longest / 2 <= waits(lambda: 0.0) <= waits(lambda: spread) <= longest


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_another_form_is_no_more_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    forms = [(0xFFFF << 32) + number, (0x2002 << 112) + (number << 80), (0x64FF9B << 96) + number]
    for form in forms:
        assert is_public(ipaddress.IPv6Address(form)) == is_public(address)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (AlertsConfig(smtp_host="mail"), "smtp_from"),
        (AlertsConfig(smtp_host="mail", smtp_from="Torpor <t@example.com>"), "smtp_from"),
        (AlertsConfig(smtp_port=70000), "smtp_port"),
        (AlertsConfig(smtp_user="t"), "smtp_user"),
        (AlertsConfig(smtp_user="t", smtp_password_env="UNSET"), "smtp_password_env"),
        (AlertsConfig(smtp_host="mail", smtp_from="t@example.com"), None),
        (AlertsConfig(), None),
    ],
)
def test_faults_of_the_configuration_are_named(config: AlertsConfig, key: str | None) -> None:
    fault = alerts_fault(config, {"SET": "x"})
    assert (fault and fault[0]) == key


def test_the_page_verifies_what_is_sent() -> None:
    """The receiver's code in docs/alerts.md, with a signature of the gateway's."""
    page = (REPOSITORY / "docs" / "alerts.md").read_text()
    code = page.partition("To verify one without a library:\n\n```python\n")[2].partition("```")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)  # the page's own code
    key, now, body = b"k" * 32, int(time.time()), b'{"type":"spend_alert.triggered"}'

    def verified(signed: bytes, secret: bytes = key, at: int = now, message: str = "msg_1") -> bool:
        headers = {"webhook-id": message, "webhook-timestamp": str(at)}
        headers["webhook-signature"] = f"v1,AAAA {signature(key, 'msg_1', at, signed)}"
        return bool(scope["verify"](shown_secret(secret), headers, body))

    assert verified(body)
    assert not verified(body + b" ")
    assert not verified(body, secret=b"x" * 32)
    assert not verified(body, at=now - 1000)
    assert not verified(body, message="msg_2")


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks specification's own libraries."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

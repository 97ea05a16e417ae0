"""A gateway with spend alerts, in front of the stand-in engine, and a look into its outbox."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from gateway.config.alerts import AlertsConfig
from gateway.config.prices import PriceConfig
from tenants.tables import alert_notifications
from tests.gateway.app_fixture import Stage, stage_at
from tests.gateway.receivers import Receiver

PRICES = [PriceConfig(model="near", input=Decimal(1000), cached_input=Decimal(500), output=Decimal(2000))]
COST_CENTS = 5
"""Of one answer of the stand-in: 5.1 cents."""
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
QUICK = AlertsConfig(allow_private_addresses=True, retry_base_s=0.05, timeout_s=2.0)


@asynccontextmanager
async def alert_stage(
    folder: Path, standin: str, alerts: AlertsConfig = QUICK, **environment: str
) -> AsyncIterator[Stage]:
    async with stage_at(folder, standin, prices=PRICES, alerts=alerts, environment=environment) as opened:
        yield opened


async def make_alert(
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
    created: dict[str, Any] = answer.json()
    return f"{path}/{created['id']}", created


def hook(receiver: Receiver) -> dict[str, Any]:
    return {"type": "webhook", "url": receiver.url}


async def outbox_rows(stage: Stage) -> list[Any]:
    async with stage.services.database.connect() as connection:
        statement = select(alert_notifications).order_by(alert_notifications.c.created_ms)
        return list((await connection.execute(statement)).mappings())


async def outbox_when_over(stage: Stage, count: int) -> list[Any]:
    """The outbox, as soon as so many notifications are delivered or given up."""
    for _ in range(1000):
        rows = await outbox_rows(stage)
        if sum(row["next_attempt_ms"] is None for row in rows) >= count:
            return rows
        await asyncio.sleep(0.01)
    raise AssertionError(rows)


def certificate(folder: Path, host: x509.GeneralName = LOOPBACK) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for a server on loopback: the file to trust, and the server's context."""
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

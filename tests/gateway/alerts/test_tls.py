"""Alerts by email and by HTTPS, to servers with certificates of their own."""

import email
from email.message import Message
from pathlib import Path

import pytest
from cryptography import x509

from gateway.config.alerts import AlertsConfig
from tests.gateway.alerts_fixture import COST_CENTS, alert_stage, certificate, make_alert, outbox_when_over
from tests.gateway.receivers import mail_server, receiving


@pytest.mark.parametrize(("host", "delivered"), [("localhost", True), ("elsewhere.test", False)])
async def test_https_is_checked_by_the_name_although_the_address_is_what_is_dialled(
    tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch, host: str, delivered: bool
) -> None:
    pem, context = certificate(tmp_path, x509.DNSName(host))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    config = AlertsConfig(allow_private_addresses=True, max_attempts=1)
    async with alert_stage(tmp_path, standin, config) as stage:
        with receiving(certificate=context) as receiver:
            url = f"https://localhost:{receiver.port}/hook"
            await make_alert(stage, COST_CENTS, {"type": "webhook", "url": url})
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await outbox_when_over(stage, 1)
    assert len(receiver.arrivals) == delivered
    if delivered:
        assert receiver.arrivals[0].headers["host"] == f"localhost:{receiver.port}"
    else:
        assert row["error"] == "the receiver could not be reached: ConnectError"


async def test_mail_goes_encrypted_to_all_after_the_server_was_busy(
    tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    async with mail_server(context, refusals=2) as mail:
        mail.unknown = frozenset({"gone@example.com"})
        config = AlertsConfig(
            smtp_host="127.0.0.1", smtp_port=mail.port, smtp_from="torpor@example.com", smtp_user="torpor",
            smtp_password_env="MAIL_PASSWORD", retry_base_s=0.02,
        )  # fmt: skip
        async with alert_stage(tmp_path, standin, config, MAIL_PASSWORD="open sesame") as stage:
            recipients = ["a@example.com", "gone@example.com", "b@example.com"]
            channel = {"type": "email", "recipients": recipients, "subject_prefix": "Gr\u00fc\u00dfe"}
            await make_alert(stage, COST_CENTS, channel)
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await outbox_when_over(stage, 1)
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
    """Neither to a server without STARTTLS nor to one whose certificate is not trusted."""
    _, context = certificate(tmp_path)
    async with mail_server(None if trusted else context) as mail:
        config = AlertsConfig(
            smtp_host="127.0.0.1", smtp_port=mail.port, smtp_from="t@example.com", max_attempts=1
        )
        async with alert_stage(tmp_path, standin, config) as stage:
            await make_alert(stage, COST_CENTS, {"type": "email", "recipients": ["a@example.com"]})
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await outbox_when_over(stage, 1)
    assert not mail.mails
    assert row["error"].startswith("the SMTP server did not take the mail: ")

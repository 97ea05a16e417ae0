"""Alerts by email, through the configured SMTP server."""

import smtplib
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from functools import partial

from gateway.alerts.messages import DeliveryFailed, subject_of, text_of
from gateway.alerts.threads import BoundedThreads
from gateway.config.alerts import AlertsConfig
from tenants.alerts.outbox import Notification

_MAILS = 8
"""Mails sent at once for all organizations, since they all go to the operator's own server."""


class MailChannel:
    """Sends mail. ``password`` is that of the configuration's ``smtp_user``."""

    def __init__(self, config: AlertsConfig, password: str | None) -> None:
        self._config = config
        self._password = password
        self._sending = BoundedThreads("alert mail", most=_MAILS, most_of_one=_MAILS)

    async def deliver(self, notification: Notification) -> None:
        """Send a mail. Raises `DeliveryFailed` unless the server accepts it for at least one recipient."""
        host = self._config.smtp_host
        if host is None:
            raise DeliveryFailed("no SMTP server is configured")
        await self._sending.run(host, partial(self._send, host, self._message(notification)))

    def _message(self, notification: Notification) -> EmailMessage:
        sender = self._config.smtp_from or ""
        message = EmailMessage()
        message["From"] = sender
        message["To"] = ", ".join(notification.alert.channel.get("recipients", []))
        message["Subject"] = subject_of(notification)
        message["Date"] = format_datetime(datetime.fromtimestamp(notification.created_ms / 1000, UTC))
        message["Message-ID"] = f"<{notification.id}@{sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text_of(notification))
        return message

    def _send(self, host: str, message: EmailMessage) -> None:
        config = self._config
        try:
            with smtplib.SMTP(host, config.smtp_port, timeout=config.timeout_s) as server:
                if config.starttls:
                    server.starttls(context=ssl.create_default_context())
                if config.smtp_user is not None and self._password is not None:
                    server.login(config.smtp_user, self._password)
                server.send_message(message)
        except smtplib.SMTPResponseException as error:
            raise DeliveryFailed(f"the SMTP server answered {error.smtp_code}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise DeliveryFailed(f"the SMTP server did not take the mail: {type(error).__name__}") from error

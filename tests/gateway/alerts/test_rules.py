"""What alerts promise of waits, addresses, signatures and configuration."""

import base64
import ipaddress
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.alerts.addresses import is_public
from gateway.alerts.delivery import Deliveries
from gateway.alerts.webhooks import shown_secret, signature
from gateway.config.alerts import AlertsConfig, alerts_faults
from tenants.alerts.outbox import Outbox
from tests.process import REPOSITORY


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
    fault = next(alerts_faults(config, {"SET": "x"}), None)
    assert (fault and fault.key) == key


def test_the_page_verifies_what_is_sent() -> None:
    """The receiver's code in docs/how-to/alerts.md, with a signature of the gateway's."""
    page = (REPOSITORY / "docs/how-to/alerts.md").read_text()
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
    created = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert created == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

"""The gateway is killed after an alert has fired: a later one tells it, under the same id."""

import signal
from pathlib import Path

from tests.gateway.receivers import receiving
from tests.process import QUESTION, running_gateway

CONFIGURATION = """
[[models]]
id = "far"
url = "{standin}/v1"

[[prices]]
model = "far"
input = "1000"
output = "2000"

[alerts]
allow_private_addresses = true
retry_base_s = 1.0
"""


def test_an_alert_survives_the_gateway(standin: str, tmp_path: Path) -> None:
    models = CONFIGURATION.format(standin=standin)
    with receiving(500) as receiver, running_gateway(tmp_path, models) as gateway:
        body = {
            "threshold_amount": 5,
            "currency": "USD",
            "interval": "month",
            "notification_channel": {"type": "webhook", "url": receiver.url},
        }
        with gateway.http(gateway.admin_key) as admin:
            created = admin.post("/v1/organization/spend_alerts", json=body)
            assert created.status_code == 200, created.text
        with gateway.http() as http:
            chat = {"model": "far", "messages": QUESTION, "max_tokens": 9}
            assert http.post("/v1/chat/completions", json=chat).status_code == 200
        receiver.wait(1)
        gateway.end(signal.SIGKILL)
        gateway.start()
        receiver.wait(2)
    first, second = receiver.arrivals
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert second.verified(created.json()["notification_channel"]["secret"])

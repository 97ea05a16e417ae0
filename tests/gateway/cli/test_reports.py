"""``torpor usage`` and its commands, as an operator types them."""

import csv
import io
import time
from pathlib import Path

from tests.process import QUESTION, running_gateway


def test_report_export_and_verify(standin: str, tmp_path: Path) -> None:
    models = f'[[models]]\nid = "far"\nurl = "{standin}/v1"\n\n[[prices]]\nmodel = "far"\noutput = "2"\n'
    with running_gateway(tmp_path, models) as gateway, gateway.http() as http:
        for _ in range(3):
            answer = http.post("/v1/chat/completions", json={"model": "far", "messages": QUESTION})
            assert answer.status_code == 200
        today = time.strftime("%Y-%m-%d", time.gmtime())
        report = gateway.torpor("usage", "report", "--days", "1").stdout.splitlines()
        assert any(today in line and "far" in line for line in report)
        assert any("█" in line and "132" in line for line in report)
        assert "far" in gateway.torpor("usage").stdout
        exported = gateway.torpor("usage", "export", "--from", today).stdout
        rows = list(csv.DictReader(io.StringIO(exported)))
        assert [(row["model"], row["outcome"], row["output_cost"]) for row in rows] == [
            ("far", "completed", str(7 * 2 * 10**6))
        ] * 3
        file = tmp_path / "entries.parquet"
        gateway.torpor("usage", "export", "--format", "parquet", "--output", str(file))
        assert file.read_bytes()[:4] == file.read_bytes()[-4:] == b"PAR1"
        assert "is what the entries say" in gateway.torpor("usage", "verify").stdout
        advice = gateway.torpor("advise", "--hardware-hour", "1.5", "--hosted-output", "2").stdout
        assert any(line.startswith("far") and "132" in line for line in advice.splitlines())
        assert "as run" in advice
        refused = gateway.torpor("usage", "export", "--from", today, "--to", "2020-01-01", check=False)
        assert refused.returncode == 1
        assert "--to" in refused.stderr

"""The ledger's entries, read from the database of a gateway that runs."""

import sqlite3
import time
from typing import Any

from tests.process import Gateway


def last_entry(gateway: Gateway, request_id: str | None = None) -> dict[str, Any]:
    """The newest entry, or that of a request, once it is settled."""
    path = gateway.folder / ".torpor/torpor.db"
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    database.row_factory = sqlite3.Row
    try:
        for _ in range(100):
            # A report waits until the database has what is durable.
            with gateway.http(gateway.admin_key) as http:
                http.get("/v1/organization/usage/completions", params={"start_time": int(time.time())})
            row = database.execute(
                "SELECT * FROM ledger_entries WHERE request_id = coalesce(?, request_id)"
                " ORDER BY started_ms DESC LIMIT 1",
                (request_id,),
            ).fetchone()
            if row is not None and row["outcome"] is not None:
                return dict(row)
            time.sleep(0.05)
        raise AssertionError("the entry was not settled")
    finally:
        database.close()

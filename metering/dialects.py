"""What the databases say differently."""

from importlib import import_module
from typing import Any

from sqlalchemy import Table


def insert_into(table: Table, dialect: str) -> Any:
    """``INSERT`` with ``ON CONFLICT``, of ``sqlite`` or ``postgresql``; only that dialect is imported."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)

"""What is wrong with a configuration that was read: every section reports it in the same form."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """The key of a section, and what is wrong with its value. ``index`` counts the tables of an array.

    The functions called ``..._faults`` yield these. `gateway.config.sections.load_config` raises the first,
    with file and line.
    """

    section: str
    key: str | None
    message: str
    index: int = 0

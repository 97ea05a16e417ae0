"""What the host and an engine's processes agree on is written once, or held equal here."""

from coldstart.snapshots import working_set
from engines import wire


def test_the_list_of_written_pages_is_read_where_it_is_put() -> None:
    assert wire.WRITTEN == wire.ENGINE_DIR / working_set.WRITTEN


def test_an_unfit_engine_is_told_from_one_whose_canary_is_not_known() -> None:
    assert wire.UNFIT != wire.UNPROVEN
    assert not {wire.UNFIT, wire.UNPROVEN} & {0, 1, 2, *range(126, 256)}, "the shell's and Python's own"

"""How many wrong keys an address may try: each may cost a look into the database, or a signature check."""

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

_MINUTE_S = 60.0
_MAX_ADDRESSES = 10_000


class FailureLimit:
    """A burst of ``per_minute`` failures from one address, and that many again in each minute (GCRA).

    An IPv6 address counts with its whole /64, which is what one customer gets. The table is bounded: the
    address that has not failed for longest is forgotten first. What is over the limit by more than another
    minute's worth is not held against an address.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = _MINUTE_S / per_minute
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()
        self.refused = 0

    def blocked_s(self, address: str) -> float:
        """Seconds until the address may try again; 0 where it may now."""
        free_at = self._free_at.get(_network(address))
        if free_at is None:
            return 0.0
        wait_s = free_at - self._clock() - _MINUTE_S + self._interval_s
        if wait_s <= 0:
            return 0.0
        self.refused += 1
        return wait_s

    def failed(self, address: str) -> None:
        """The address has sent a key that opens nothing."""
        network, now = _network(address), self._clock()
        free_at = max(self._free_at.get(network, 0.0), now) + self._interval_s
        self._free_at[network] = min(free_at, now + 2 * _MINUTE_S)
        self._free_at.move_to_end(network)
        while len(self._free_at) > _MAX_ADDRESSES:
            self._free_at.popitem(last=False)


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(IPv6Address(int(parsed) >> 64 << 64))

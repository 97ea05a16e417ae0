"""Which addresses are of the public Internet.

Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), the registry of IPv6 address
space, of which only 2000::/3 is global unicast, and RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo),
RFC 5214 (ISATAP) for addresses in which another one is written.
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NOT_PUBLIC_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, with the metadata services of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # IETF protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays, deprecated
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and the broadcast address
        ),
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # IETF protocol assignments: benchmarking, ORCHIDs; Teredo is looked into before
            "2001:db8::/32",  # documentation
            "3ffe::/16",  # 6bone, returned
            "3fff::/20",  # documentation
        ),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(address: Address) -> bool:
    """Whether the address is one of the public Internet, also the one that it may stand for in IPv6."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    number = int(address)
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if inner is not None:
        return is_public(inner)
    if ((number >> 32) & 0xFFFFFFFF) in _ISATAP and not is_public(ipaddress.IPv4Address(number & 0xFFFFFFFF)):
        return False
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_6)


def literal(host: str) -> Address | None:
    """The address that a host in a URL is, with or without a zone; ``None`` for a name.

    What only the C library takes for an address (``127.1``) is a name: its lookup tells the address.
    """
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None

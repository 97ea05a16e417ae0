"""Which addresses a webhook may go to, whatever form they are written in."""

import ipaddress

import pytest

from gateway.alerts.addresses import is_public, literal
from gateway.alerts.webhooks import url_fault

PRIVATE_4 = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.171",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
)
PUBLIC_4 = (
    "1.1.1.1",
    "9.255.255.255",
    "100.63.255.255",
    "100.128.0.1",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "198.17.255.255",
    "198.20.0.1",
    "223.255.255.255",
)
PRIVATE_6 = (
    "::",
    "::1",
    "::127.0.0.1",  # IPv4-compatible
    "::8.8.8.8",
    "::ffff:0:8.8.8.8",  # IPv4-translated
    "64:ff9b:1::8.8.8.8",  # local-use NAT64
    "100::1",  # discard
    "100:0:0:1::1",
    "200::1",
    "2001::1",
    "2001:2::1",  # benchmarking
    "2001:10::1",  # ORCHID
    "2001:20::1",  # ORCHIDv2
    "2001:1ff:ffff::1",
    "2001:db8::1",
    "3ffe::1",
    "3fff::1",
    "3fff:fff::1",
    "4000::1",
    "5f00::1",  # SRv6 segments
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ff0e::1",
    "2606:4700::5efe:10.0.0.1",  # ISATAP
    "2606:4700::200:5efe:127.0.0.1",
)
PUBLIC_6 = ("2606:4700:4700::1111", "2001:200::1", "2a00:1450::1", "2620:fe::fe", "3fff:1000::1")


def _written_in_ipv6(address: ipaddress.IPv4Address) -> list[ipaddress.IPv6Address]:
    """As IPv4-mapped, NAT64, 6to4 and, by its obfuscated client, Teredo address."""
    number = int(address)
    return [
        ipaddress.IPv6Address(value)
        for value in (
            (0xFFFF << 32) + number,
            (0x64FF9B << 96) + number,
            (0x2002 << 112) + (number << 80) + 1,
            (0x20010000 << 96) + (number ^ 0xFFFFFFFF),
        )
    ]


@pytest.mark.parametrize("text", PRIVATE_4 + PRIVATE_6)
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    assert url_fault(f"https://{host}/hook", private=False) == "must not be a private address"
    assert url_fault(f"https://{host}/hook", private=True) is None


@pytest.mark.parametrize("text", PUBLIC_4 + PUBLIC_6)
def test_a_public_address_is_taken(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PRIVATE_4 + PUBLIC_4)
def test_an_address_within_another_counts_as_what_it_stands_for(text: str) -> None:
    address = ipaddress.IPv4Address(text)
    assert {is_public(form) for form in _written_in_ipv6(address)} == {text in PUBLIC_4}


def test_a_zone_makes_an_address_no_more_public() -> None:
    address = literal("fe80::1%eth0")
    assert address is not None
    assert not is_public(address)


@pytest.mark.parametrize("name", ["example.com", "1.2.3.4.example", "dead.beef", "a", "127.1"])
def test_a_name_is_not_an_address(name: str) -> None:
    assert literal(name) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://xn--a/",
        "https://xn--zzzzzzzzzz99999999/",
        "https://XN--A.example/",
        "https://a:0/",
        "https://a:65536/",
        "https://a:b/",
        "https://[::1/",
        "https://./",
        "https:///hook",
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_a_host_that_cannot_be_is_refused_when_the_alert_is_made(url: str, private: bool) -> None:
    assert url_fault(url, private=private) in ("must be a URL", "must be an http:// or https:// URL")


@pytest.mark.parametrize("url", ["https://xn--bcher-kva.example/", "https://example.com.:8443/a?b=c"])
def test_an_international_or_absolute_name_is_taken(url: str) -> None:
    assert url_fault(url, private=False) is None

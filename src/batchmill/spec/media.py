"""Where the media of a request may come from: which URLs in it a backend must not be made to fetch (S8, B27)."""

import json
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from unicodedata import normalize
from urllib.parse import unquote

from batchmill.spec.errors import clip

_PARTS = frozenset({"image_url", "video_url", "audio_url", "input_audio"})  # members that hold media
_MARKS = (b"_url", b"input_audio", b"\\")  # text without one of these holds no such member
_OCTETS = 4
_NOTATIONS: Sequence[Mapping[str, int]] = ({"0x": 16, "0": 8}, {"0x": 16})  # C's, and that of who knows no octal

_INWARD = ("localhost", "localdomain", "internal", "local", "ip6-localhost", "ip6-loopback", "metadata")
_NAT64 = IPv6Network("64:ff9b::/96")
_UNICAST = IPv6Network("2000::/3")  # all that is given out; the rest is reserved, or leads inward (site-local, SIIT)
_EXAMPLES = IPv6Network("3fff::/20")  # RFC 9637; Python knows it from 3.13 on


def may_hold_media(raw: bytes) -> bool:
    """Say whether it is worth looking for URLs."""
    return any(mark in raw for mark in _MARKS)


def inward_url(raw: bytes) -> str | None:
    """Return the first media URL in valid JSON that is not public, as a message may echo it, or None.

    Public are `data:`, `ms://` (a File of Kimi's) and http(s) to a name or a public address. No name is looked up: what
    it stands for is for the network around the backend to guard.
    """
    return next((clip(url) for url in _urls(raw) if not is_public(url)), None)


def is_public(url: str) -> bool:
    """Say whether a URL is one that any backend may fetch. What two parsers might read differently is not."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme == "data":
        return bool(colon)
    if any(char <= " " or char in "\\\x7f" for char in url) or not rest.startswith("//"):
        return False
    return scheme == "ms" or (scheme in {"http", "https"} and _is_public_host(_host(rest[2:])))


def is_public_address(text: str) -> bool:
    """Say whether an address, as a resolver gives it, is one of the public network."""
    return _is_public_v6(text) if ":" in text else _is_public_v4(IPv4Address(text))


def _urls(raw: bytes) -> Sequence[str]:
    """Return every media URL, those of repeated members included: parsers differ on which of them counts."""
    found: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
        for name, value in pairs:
            if name not in _PARTS:
                continue
            if isinstance(value, str):
                found.append(value)
            elif isinstance(value, tuple):
                texts = [(each, text) for each, text in value if isinstance(text, str)]
                # The data of input_audio is base64, which has no colon, or else a URL.
                found.extend(text for each, text in texts if each == "url" or (each == "data" and ":" in text))
        return tuple(pairs)

    json.loads(raw, object_pairs_hook=look, parse_int=str, parse_float=str)
    return found


def _host(text: str) -> str:
    """Return the host of what follows `//`, in the form that a resolver would see."""
    for end in "/?#":
        text = text.partition(end)[0]
    text = text.rpartition("@")[2]
    host = text.partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return normalize("NFKC", unquote(host)).replace("。", ".").lower().removesuffix(".")


def _is_public_host(host: str) -> bool:
    if host.startswith("["):
        return _is_public_v6(host[1:])
    labels = host.split(".")
    if not all(labels) or labels[-1] in _INWARD:
        return False
    if not labels[-1][0].isdigit():  # names end in letters; what ends in a number is an address, or nothing
        return True
    readings = [_address(labels, bases) for bases in _NOTATIONS]
    return all(address is not None and _is_public_v4(address) for address in readings)


def _address(labels: Sequence[str], bases: Mapping[str, int]) -> IPv4Address | None:
    """Return what one to four numbers stand for, as inet_aton reads them: the last one fills what is left."""
    value = 0
    for place, label in enumerate(labels):
        number, room = _number(label, bases), 256
        if place == len(labels) - 1:
            room = 256 ** max(0, _OCTETS - place)
        if number is None or number >= room:
            return None
        value = value * room + number
    return IPv4Address(value) if value >> 8 * _OCTETS == 0 else None


def _number(text: str, bases: Mapping[str, int]) -> int | None:
    prefix = next((each for each in bases if text.startswith(each) and text != each), "")
    try:
        return int(text.removeprefix(prefix), bases.get(prefix, 10))
    except ValueError:
        return None


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _is_public_v6(text: str) -> bool:
    try:
        address = IPv6Address(text)
    except ValueError:
        return False
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None or address in _NAT64:
        return _is_public_v4(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address not in _UNICAST or address in _EXAMPLES or not address.is_global:
        return False
    return address.sixtofour is None or _is_public_v4(address.sixtofour)

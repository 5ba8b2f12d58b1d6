"""Host names as a certificate can carry them."""

import ipaddress
import re

# RFC 5890 section 2.3.1: letters, digits and hyphens, no hyphen at either end.
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def dns_name(text: str) -> str:
    """A DNS name, possibly with a leading "*.", lower case, as A-labels (RFC 5890).

    ValueError says, with the name, what is wrong with it.
    """
    name = text.strip().lower().removesuffix(".")
    wildcard = name.startswith("*.")
    base = name.removeprefix("*.")
    if _is_ip_address(base):
        raise ValueError(
            f"{text}: is an IP address; dns-01 proves control of names only (RFC 8555 section 8.4)"
        )
    if "*" in base:
        raise ValueError(f'{text}: "*" may only stand for the whole leftmost label, as in *.example.com')
    labels = base.split(".")
    if "" in labels:
        raise ValueError(f"{text or '(nothing)'}: has an empty label")
    if len(labels) < 2:
        raise ValueError(f"{text}: is a single label; a CA wants a name with a dot, such as www.example.com")
    labels = [_a_label(label, text) for label in labels]
    for label in labels:
        if len(label) > 63:
            raise ValueError(f"{text}: the label {label[:20]}… has {len(label)} characters; 63 is the limit")
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{text}: the label {label} may hold only letters, digits and inner hyphens")
    result = ("*." if wildcard else "") + ".".join(labels)
    if len(result) > 253:
        raise ValueError(f"{text[:40]}…: has {len(result)} characters; 253 is the limit")
    return result


def covers(pattern: str, name: str) -> bool:
    """Whether a certificate's name covers a host: equal, or "*." for exactly one label (RFC 6125 section 6.4.3)."""
    if pattern.startswith("*."):
        return name.partition(".")[2] == pattern[2:] and not name.startswith(".")
    return pattern == name


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _a_label(label: str, name: str) -> str:
    if label.isascii() and not label.startswith("xn--"):
        return label
    import idna  # its tables take a moment to load, and most names need none of them

    try:
        return idna.encode(label, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(f"{name}: is not a valid internationalised name ({error})") from None

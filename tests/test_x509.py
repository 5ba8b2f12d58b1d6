"""common/x509.py and common/install.py: certificates and keys that fit together, and those that do not."""

import base64
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import install, x509
from common.failure import Failure, Usage
from common.state import State

NOW = datetime.now(timezone.utc)


def name(text: str) -> crypto_x509.Name:
    return crypto_x509.Name([crypto_x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str,
    key: x509.PrivateKey,
    issuer: str,
    issuer_key: x509.PrivateKey,
    names: tuple[str, ...] = (),
    start: datetime = NOW - timedelta(days=2),
    end: datetime = NOW + timedelta(days=90),
) -> crypto_x509.Certificate:
    builder = (
        crypto_x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(crypto_x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if names:
        sans = crypto_x509.SubjectAlternativeName([crypto_x509.DNSName(n) for n in names])
        builder = builder.add_extension(sans, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


ROOT_KEY, MIDDLE_KEY, KEY = (x509.new_private_key("ec256") for _ in range(3))
MIDDLE = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY)


def leaf(**changes: object) -> crypto_x509.Certificate:
    facts = {"names": ("example.com", "*.example.com"), "key": KEY, **changes}
    return certificate("leaf", issuer="middle", issuer_key=MIDDLE_KEY, **facts)


def test_a_good_certificate_passes():
    x509.check_certificate(leaf(), KEY, ["example.com", "*.example.com"])
    x509.check_chain([leaf(), MIDDLE])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (leaf(key=x509.new_private_key("ec256")), "another key"),
        (leaf(names=("example.com",)), r"lacks \*\.example\.com"),
        (leaf(end=NOW - timedelta(minutes=1)), "expired on"),
        (leaf(start=NOW + timedelta(hours=2)), "valid only from"),
    ],
)
def test_a_certificate_that_is_not_what_was_asked_for_is_refused(wrong: crypto_x509.Certificate, reason: str):
    with pytest.raises(Failure, match=reason):
        x509.check_certificate(wrong, KEY, ["example.com", "*.example.com"])


@pytest.mark.parametrize(
    "issuers",
    [
        [certificate("other", ROOT_KEY, "root", ROOT_KEY)],
        [certificate("middle", ROOT_KEY, "root", ROOT_KEY)],
        [certificate("root", ROOT_KEY, "root", ROOT_KEY), MIDDLE],
    ],
)
def test_a_chain_in_which_one_does_not_issue_the_one_before_is_refused(issuers: list):
    with pytest.raises(Failure, match="not in order"):
        x509.check_chain([leaf(), *issuers])


def test_a_chain_that_is_cut_off_is_refused():
    pem = x509.certificate_pem([leaf(), MIDDLE])
    with pytest.raises(Failure, match="middle of a certificate"):
        x509.split_chain(pem[: len(pem) * 3 // 4], "the CA's answer")


def test_a_chain_is_split_whatever_stands_around_its_blocks():
    pem = x509.certificate_pem([leaf(), MIDDLE]).decode()
    noisy = "subject=CN = x\r\n" + pem.replace("\n", "\r\n") + "\n\n# end\n"
    assert x509.split_chain(noisy.encode(), "a test") == x509.split_chain(pem.encode(), "a test")


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n\xff\xff\n-----END CERTIFICATE-----\n",
        x509.certificate_pem([MIDDLE])[:-40],
    ],
)
def test_what_is_no_chain_is_a_clear_failure(pem: bytes):
    with pytest.raises(Failure, match="a test: "):
        x509.split_chain(pem, "a test")


def test_beginnings_without_an_end_take_time_in_proportion_to_their_number():
    def seconds(number: int) -> float:
        started = time.process_time()
        with pytest.raises(Failure, match="middle of a certificate"):
            x509.split_chain(b"-----BEGIN CERTIFICATE-----\n" * number, "a test")
        return time.process_time() - started

    few, many = (min(seconds(number) for _ in range(3)) for number in (4000, 32_000))
    assert many < 24 * few  # where each is searched to the end of all, 64 times as long


@pytest.mark.parametrize("key_type", ["ec256", "ec384", "rsa2048"])
def test_traditional_pem_is_pkcs1_or_sec1(key_type: str):
    pem = x509.traditional_private_key_pem(x509.new_private_key(key_type))
    kind = "RSA" if key_type.startswith("rsa") else "EC"
    assert pem.startswith(f"-----BEGIN {kind} PRIVATE KEY-----\n")


def pkcs8(key: object, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "not an unencrypted PEM private key"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "not an unencrypted PEM private key",
        ),
        (x509.certificate_pem([MIDDLE]), "not an unencrypted PEM private key"),
        (pkcs8(KEY, serialization.BestAvailableEncryption(b"x")), "not an unencrypted PEM private key"),
        (
            pkcs8(ed25519.Ed25519PrivateKey.generate(), serialization.NoEncryption()),
            "neither an RSA nor a P-256",
        ),
        (
            pkcs8(ec.generate_private_key(ec.SECP521R1()), serialization.NoEncryption()),
            "neither an RSA nor a P-256",
        ),
    ],
)
def test_a_key_file_that_cannot_be_used_is_named(pem: bytes, reason: str):
    with pytest.raises(Usage, match=f"the.key:? is {reason}"):
        x509.load_private_key(pem, Path("the.key"))


def test_a_serial_is_whole_octets_of_hex():
    assert len(x509.serial_hex(leaf())) % 2 == 0


@pytest.mark.parametrize(
    ("domain", "covered"),
    [
        ("example.com", True),
        ("www.example.com", True),
        (".example.com", True),
        ("*.example.com", True),
        ("a.b.example.com", False),
        (".b.example.com", False),
        ("example.org", False),
    ],
)
def test_a_certificate_covers_hosts_and_wildcard_domains(domain: str, covered: bool):
    assert x509.covers(leaf(), domain) is covered


def state_with(tmp_path: Path, chain: list, key: x509.PrivateKey) -> State:
    state = State(tmp_path)
    state.write("fullchain.pem", x509.certificate_pem(chain))
    state.write("certificate.key", x509.private_key_pem(key))
    return state


@pytest.mark.parametrize(
    ("chain", "key", "domains", "reason"),
    [
        ([leaf(), MIDDLE], ROOT_KEY, [], "is not the key of"),
        ([leaf(end=NOW - timedelta(days=1)), MIDDLE], KEY, [], "expired"),
        ([leaf(), MIDDLE], KEY, ["www.example.com", "example.org"], "does not cover example.org"),
    ],
)
def test_what_must_not_be_installed_is_refused(
    tmp_path: Path, chain: list, key: x509.PrivateKey, domains: list, reason
):
    with pytest.raises(Usage, match=reason):
        install.load_key_pair(state_with(tmp_path, chain, key), domains)


def test_a_certificate_name_is_legal_and_of_one_serial_and_domain(tmp_path: Path):
    first = install.load_key_pair(state_with(tmp_path / "1", [leaf(), MIDDLE], KEY), [])
    second = install.load_key_pair(state_with(tmp_path / "2", [leaf(), MIDDLE], KEY), [])
    names = {
        pair.name_for(domain) for pair in (first, second) for domain in ("a.example.com", "b.example.com")
    }
    assert len(names) == 4
    assert first.name_for("a.example.com") in names
    assert all(n[0].isalpha() and n.replace("_", "").isalnum() and 4 <= len(n) <= 50 for n in names)


def test_the_longest_serial_still_makes_a_legal_name():
    longest = crypto_x509.random_serial_number() | 1 << 158
    pair = install.KeyPair([], "", "")
    object.__setattr__(pair, "chain", [type("Leaf", (), {"serial_number": longest})()])
    assert len(pair.name_for("a.example.com")) <= 50


def test_when_some_domains_fail_the_others_are_done_and_each_failure_is_named():
    done = []

    def one(domain: str) -> None:
        if domain.startswith("bad"):
            raise Failure("no such domain" if domain == "bad1" else f"no {domain}", "mend it")
        done.append(domain)

    with pytest.raises(Failure) as failure:
        install.for_each(["a", "bad1", "b", "bad2", "c"], one)
    assert done == ["a", "b", "c"]
    # Named once: where the reason does not name it already.
    assert failure.value.what.splitlines() == ["bad1: no such domain", "no bad2"]
    assert failure.value.exit_code == 1


LEAF = leaf()


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=3))
@example([(12, 1)])  # a version that does not exist
@settings(max_examples=300, deadline=None)
def test_a_damaged_certificate_is_a_certificate_or_a_failure(damages: list[tuple[int, int]]):
    der = bytearray(LEAF.public_bytes(serialization.Encoding.DER))
    for place, octet in damages:
        der[place % len(der)] = octet
    body = base64.encodebytes(bytes(der))
    pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
    try:
        chain = x509.split_chain(pem, "a test")
    except Failure as failure:
        assert "a test: " in failure.what
        return
    assert x509.serial_hex(chain[0]) and x509.issuer_name(chain[0])
    assert isinstance(x509.dns_names(chain[0]), list)


def test_a_certificate_with_a_name_of_a_kind_that_nobody_reads_is_a_clear_failure():
    # [3] is an x400Address (RFC 5280 section 4.2.1.6), where [2] is a DNS name.
    der = LEAF.public_bytes(serialization.Encoding.DER)
    changed = der.replace(b"\x82\x0bexample.com", b"\xa3\x0bexample.com")
    assert changed != der
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(changed) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(Failure, match="cannot be read"):
        x509.split_chain(pem, "a test")

"""The ten scripts in order: what a person does, twice over, with every kind of CA, and without leaving a secret."""

import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from conftest import SCRIPTS, Learner, clean_environment, dns_contents
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from common import jws
from lab import Lab

ORDER = ("01", "02", "03", "04", "05", "06", "07", "08", "10", "09")


def in_one_order(value: Any) -> Any:
    """JSON without the order of its lists: a CA may shuffle them at every answer."""
    if isinstance(value, dict):
        return {name: in_one_order(member) for name, member in value.items()}
    return sorted(map(in_one_order, value), key=json.dumps) if isinstance(value, list) else value


def snapshot(learner: Learner) -> dict[str, Any]:
    """Every file of the state folder, but for the trace, which grows, and the PFX, which is salted anew."""
    files = {path.relative_to(learner.state).as_posix(): path for path in learner.state.rglob("*")}
    return {
        name: in_one_order(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        for name, path in files.items()
        if path.is_file() and name not in ("trace.jsonl", "certificate.pfx", ".lock")
    }


def test_the_series_from_the_first_key_to_revocation_and_each_second_run_changes_nothing(
    learner: Learner, lab: Lab
) -> None:
    before = dns_contents(lab)
    for number, following in zip(ORDER, (*ORDER[1:8], *["none"] * 3), strict=True):
        first = learner.run(number)
        told = first.err.splitlines()
        assert told[0] == f"settings {learner.ini}   CA {learner.lab.directory_url}"
        assert following == "none" or told[-1] == f"next  {SCRIPTS[following].name}"
        state = snapshot(learner)
        second = learner.run(number)
        assert snapshot(learner) == state, (
            f"the second run of {SCRIPTS[number].name} changed the state folder"
        )
        assert second.out == first.out
    assert dns_contents(lab) == before
    assert lab.pebble.certificate_status(learner.chain()[0].serial_number)["Status"] == "Revoked"


def test_standard_output_is_the_result_and_quiet_prints_nothing_else(learner: Learner) -> None:
    said = {number: learner.run(number, "--quiet") for number in ORDER}
    assert {number: run.err for number, run in said.items()} == dict.fromkeys(ORDER, "")
    out = {number: run.out for number, run in said.items()}
    state, serial = learner.state, learner.serial()
    assert out.pop("01") == f"{state / 'account.key'}\n"
    assert out.pop("02") == f"{state / 'pending/certificate.csr'}\n"
    assert out.pop("03") == learner.json("account.json")["account_url"] + "\n"
    assert out["04"].startswith("https://127.0.0.1:")
    assert out["04"].count("\n") == 1
    assert out.pop("05") == out.pop("04")
    assert out.pop("06") == f"{state / 'fullchain.pem'}\n"
    assert out.pop("07") == f"www.example.test {serial}\n"
    assert out.pop("08") == f"api.example.test {serial}\n"
    assert out.pop("09") == f"{serial}\n"
    assert out.pop("10").startswith(f"# {state / 'certificate.pfx'}\n")
    assert out == {}


@pytest.mark.parametrize(
    ("done", "number", "first"),
    [
        ("", "02", "01"),
        ("", "03", "01"),
        ("", "04", "02"),
        ("01 02", "04", "03"),
        ("", "05", "04"),
        ("01 02 03", "05", "04"),
        ("", "06", "04"),
        ("01 02 03", "06", "04"),
        ("01 02 03 04", "06", "05"),
        ("", "07", "06"),
        ("", "08", "06"),
        ("", "09", "06"),
        ("", "10", "06"),
    ],
)
def test_a_script_without_its_predecessor_names_the_one_to_run_first(
    learner: Learner, done: str, number: str, first: str
) -> None:
    learner.series(*done.split())
    calls = len(learner.lab.cloud.calls)
    run = learner.run(number, code=2)
    assert f"run {SCRIPTS[first].name} first" in run.err[run.err.index("what to do:") :]
    assert run.out == ""
    assert len(learner.lab.cloud.calls) == calls


def test_two_settings_files_side_by_side_do_not_disturb_each_other(learner: Learner, lab: Lab) -> None:
    before = dns_contents(lab)
    one, two = (Learner(learner.folder, lab) for _ in range(2))
    for person, name in ((one, "one"), (two, "two")):
        person.ini, person.state = learner.folder / f"{name}.ini", learner.folder / f"state-{name}"
        lab.write_settings(person.ini, domains=["example.test", "*.example.test"], state=f"state-{name}")
        person.series("01", "02", "03", "04")
    # The same names, proven by two accounts at the same moment: four values at one name.
    processes = [person.start("05") for person in (one, two)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert dns_contents(lab) == before
    one.run("06")
    state_of_two = snapshot(two)
    one.series("07", "08", "09", "02")
    assert snapshot(two) == state_of_two
    two.run("06")
    assert one.json("account.json")["account_url"] != two.json("account.json")["account_url"]
    assert one.serial() != two.serial()
    assert lab.pebble.certificate_status(one.chain()[0].serial_number)["Status"] == "Revoked"
    assert lab.pebble.certificate_status(two.chain()[0].serial_number)["Status"] == "Valid"


@pytest.mark.parametrize("where", ["acme.ini", "lab.ini", "$ACME_CONFIG"])
def test_the_settings_file_is_found_without_being_named(learner: Learner, where: str) -> None:
    folder, environment = learner.folder, clean_environment()
    if where == "$ACME_CONFIG":
        folder = learner.folder / "elsewhere"
        folder.mkdir()
        environment["ACME_CONFIG"] = str(learner.ini)
    else:
        learner.ini.rename(learner.folder / where)
    subprocess.run([sys.executable, str(SCRIPTS["01"])], cwd=folder, env=environment, check=True, timeout=60)
    assert (learner.state / "account.key").exists()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"strict": True}, id="strict"),
        pytest.param({"nonce_reject": 20}, id="a fifth of the nonces refused"),
        pytest.param({"nonce_reject": 50}, id="half of the nonces refused"),
        pytest.param({"authz_reuse": 100}, id="every authorization reused"),
        pytest.param({"chain_length": 3, "alternate_roots": 2}, id="long chain with alternates"),
        pytest.param({"va_sleep": 1}, id="validation takes its time"),
    ],
)
def test_the_series_holds_with_a_ca_that_is(
    new_lab: Callable[..., Lab], tmp_path: Path, options: dict[str, Any]
) -> None:
    lab = new_lab(**options)
    learner = Learner(tmp_path / "learner", lab)
    before = dns_contents(lab)
    runs = learner.series("01", "02", "03", "04", "05", "06")
    if "authz_reuse" in options:
        # The second certificate is the one for which the CA has something to remember.
        assert "nothing to prove" in learner.series("02", "04", "05", "06")["05"].err
    if "chain_length" in options:
        learner.series("07", "08", "10")
    learner.run("09")
    assert dns_contents(lab) == before
    assert lab.pebble.certificate_status(learner.chain()[0].serial_number)["Status"] == "Revoked"
    assert len(learner.chain()) == 1 + options.get("chain_length", 1)
    # With a fifth, one series in a hundred meets none that is refused.
    if options.get("nonce_reject") == 50:
        assert any("badNonce: signed again" in run.err for run in runs.values())


# Secrets. A searcher that knows every form a secret may take, and proves that it would find them.

PIECE = 9  # octets; any twice as many of a secret in a row are found


def forms(piece: bytes) -> Iterator[bytes]:
    """Every way in which a few octets of a secret may stand in a text."""
    yield piece
    yield piece.hex().encode()
    yield piece.hex().upper().encode()
    yield piece.hex(":").encode()
    for offset in range(3):
        # Within a longer base64 text, three phases are possible; what depends on the neighbours is cut off.
        encoded = base64.b64encode(bytes(offset) + piece)
        certain = encoded[4 if offset else 0 :].rstrip(b"=")[: (len(piece) * 8 - (24 - 8 * offset)) // 6]
        yield certain
        yield certain.translate(bytes.maketrans(b"+/", b"-_"))


def pieces(secret: bytes) -> Iterator[bytes]:
    """A secret cut into pieces, so that a part of it, such as a line of PEM, is found as well."""
    if len(secret) <= PIECE:
        yield secret
    for start in range(0, len(secret) - PIECE + 1, PIECE):
        yield secret[start : start + PIECE]


def views(text: bytes) -> list[bytes]:
    """A text as it is, without its percent-encoding, without line ends, and any of these together."""
    found = [text]
    for _ in range(2):
        decoded = unquote(found[-1].decode("latin-1"), encoding="latin-1").encode("latin-1")
        found.append(decoded)
    for view in list(found):
        plain = view.replace(b"\\n", b"").replace(b"\\r", b"").replace(b'\\"', b'"').replace(b"\\/", b"/")
        found.append(b"".join(plain.split()))
    return found


class Searcher:
    """Looks for secrets: name -> octets."""

    def __init__(self, known: dict[str, bytes]) -> None:
        self.needles = {
            form: name for name, secret in known.items() for piece in pieces(secret) for form in forms(piece)
        }
        assert all(len(needle) >= 8 for needle in self.needles)

    def find(self, text: bytes) -> set[str]:
        """The names of the secrets that stand in a text, in whatever form."""
        seen = views(text)
        return {name for needle, name in self.needles.items() if any(needle in view for view in seen)}


def numbers(key: Any) -> dict[str, bytes]:
    """The private numbers of a key: whatever form a key is written in, they are what is written."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        values = {"d": key.private_numbers().private_value}
    else:
        private = key.private_numbers()
        values = {name: getattr(private, name) for name in ("d", "p", "q", "dmp1", "dmq1", "iqmp")}
    return {name: value.to_bytes((value.bit_length() + 7) // 8, "big") for name, value in values.items()}


PLANTED_KEYS = {"ec": ec.generate_private_key(ec.SECP384R1()), "rsa": rsa.generate_private_key(65537, 2048)}
PKCS8 = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
TRADITIONAL = (serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())


def planted(key: Any) -> dict[str, bytes]:
    """A private key in the forms in which it could leak."""
    pem = key.private_bytes(serialization.Encoding.PEM, *PKCS8)
    traditional = key.private_bytes(serialization.Encoding.PEM, *TRADITIONAL)
    der = key.private_bytes(serialization.Encoding.DER, *PKCS8)
    number = numbers(key)["d"]
    return {
        "PEM": pem,
        "traditional PEM": traditional,
        "one line of PEM": pem.splitlines()[2 if isinstance(key, ec.EllipticCurvePrivateKey) else -5],
        "PEM in JSON": json.dumps({"key": pem.decode()}).encode(),
        "PEM in a query": quote(pem.decode(), safe="").encode(),
        "PEM in a string to sign": quote(quote(traditional.decode(), safe=""), safe="").encode(),
        "DER": der,
        "DER in base64": base64.b64encode(der),
        "DER in base64url": jws.b64url(der).encode(),
        "DER in hex": der.hex().encode(),
        "a number in base64url": jws.b64url(number).encode(),
        "a number in hex": number.hex().encode(),
        "a number as openssl prints it": number.hex(":").encode(),
    }


@pytest.mark.parametrize("kind", PLANTED_KEYS)
@pytest.mark.parametrize("form", planted(PLANTED_KEYS["ec"]))
def test_the_searcher_finds_a_planted_key(kind: str, form: str) -> None:
    key = PLANTED_KEYS[kind]
    searcher = Searcher(numbers(key))
    text = b"it was a dark and stormy night " + planted(key)[form] + b" and so on"
    assert searcher.find(text)


@pytest.mark.parametrize(
    "secret", ["swordfish-12", "a/b+c=d~e f&g%h", secrets.token_urlsafe(96), "pässwörd密码"]
)
def test_the_searcher_finds_a_planted_word(secret: str) -> None:
    raw = secret.encode()
    searcher = Searcher({"word": raw})
    for form in (
        secret,
        quote(secret, safe=""),
        quote(quote(secret, safe=""), safe=""),
        base64.b64encode(raw).decode(),
        base64.b64encode(b"1" + raw + b"2").decode(),
        base64.b64encode(b"12" + raw + b"3").decode(),
        jws.b64url(raw),
        raw.hex(),
        raw.hex().upper(),
    ):
        assert searcher.find(f"...{form}...".encode()) == {"word"}, form


def test_the_searcher_finds_nothing_in_what_is_public() -> None:
    for key in PLANTED_KEYS.values():
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        jwk = json.dumps(jws.jwk(key)).encode()
        assert Searcher(numbers(key)).find(public + jwk) == set()


def test_nothing_secret_in_any_byte_that_the_series_prints_writes_or_sends_in_a_url(
    learner: Learner, lab: Lab
) -> None:
    password = secrets.token_urlsafe(18)
    (learner.folder / "pfx-password.txt").write_text(password + "\n")
    key = lab.cloud.ram.add_sts_token()
    assert key.security_token
    learner.environment = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
        "ALIBABA_CLOUD_SECURITY_TOKEN": key.security_token,
    }
    before = len(lab.cloud.calls)
    said = b""
    certificate_keys = []
    # Every script; a second install, where API Gateway's answer holds the key; and what ends in an error.
    for number in (*ORDER[:8], "08", "07", "10", "02", "04", "05", "06", "09", "09"):
        said += learner.run(number, DEBUG="sdk").all.encode()
        if number == "02":
            certificate_keys.append((learner.state / "pending/certificate.key").read_bytes())
    said += learner.run("09", "--with-certificate-key").all.encode()
    for name in ("ACCESS_KEY_SECRET", "SECURITY_TOKEN"):
        wrong = learner.environment[f"ALIBABA_CLOUD_{name}"] + "x"
        said += learner.run("08", code=1, **{f"ALIBABA_CLOUD_{name}": wrong}).all.encode()

    known = {
        "access key secret": key.access_key_secret.encode(),
        "STS token": key.security_token.encode(),
        "PFX password": password.encode(),
    }
    keys = [(learner.state / "account.key").read_bytes(), *certificate_keys]
    assert len(set(keys)) == 3
    for file, pem in zip(
        ("account key", "first certificate key", "second certificate key"), keys, strict=True
    ):
        private = serialization.load_pem_private_key(pem, None)
        known |= {f"{name} of the {file}": value for name, value in numbers(private).items()}
    searcher = Searcher(known)

    # The searcher sees these very secrets where they must be.
    assert searcher.find(b"".join(keys)) == {name for name in known if " of the " in name}

    assert searcher.find(said) == set()
    files = [path for path in learner.state.rglob("*") if path.is_file()]
    public = [path for path in files if path.suffix not in (".key", ".pfx")]
    assert {"trace.jsonl", "account.json", "fullchain.pem"} <= {path.name for path in public}
    for path in public:
        assert searcher.find(path.read_bytes()) == set(), path
    calls = lab.cloud.calls[before:]
    assert {call.access_key_id for call in calls} == {key.access_key_id}
    for call in calls:
        assert searcher.find(call.query.encode()) == set(), call.action
    # And no file is named in a way that says more than it should.
    assert searcher.find("\n".join(str(path) for path in files).encode()) == set()

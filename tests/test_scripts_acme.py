"""The scripts that talk to the CA, and the two that make keys: 01, 02, 03, 04, 06 and 09 in the lab."""

import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Learner, load_script
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from common import acme, jws
from common.failure import Usage
from lab import Lab

KEY_TYPES = ("ec256", "ec384", "rsa2048", "rsa3072", "rsa4096")
SET = ("certificate.key", "certificate.pem", "chain.pem", "fullchain.pem")


@pytest.fixture(scope="module")
def remembering_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A CA that remembers every proof of control, and offers three chains of four certificates."""
    folder = tmp_path_factory.mktemp("remembering-lab")
    with Lab(folder, authz_reuse=100, chain_length=3, alternate_roots=2) as running:
        yield running


@pytest.fixture(scope="module")
def first_certificate(remembering_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    learner = Learner(tmp_path_factory.mktemp("renewer"), remembering_lab)
    learner.series("01", "02", "03", "04", "05", "06")
    return learner


@pytest.fixture
def renewer(first_certificate: Learner, tmp_path: Path) -> Learner:
    """A learner who holds a certificate, and gets another one with 02, 04 and 06 alone."""
    copy = Learner(tmp_path / "renewer", first_certificate.lab)
    shutil.copytree(first_certificate.state, copy.state, symlinks=True)
    return copy


def private_key(path: Path) -> Any:
    return serialization.load_pem_private_key(path.read_bytes(), password=None)


def kind_of(key: Any) -> str:
    """The name that the settings give to this kind of key."""
    if isinstance(key, rsa.RSAPrivateKey):
        return f"rsa{key.key_size}"
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return {"secp256r1": "ec256", "secp384r1": "ec384"}[key.curve.name]


def spki(holder: Any) -> bytes:
    return holder.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def client(learner: Learner) -> acme.Client:
    """Our own eyes at the CA: the learner's account, asked without the scripts."""
    key = private_key(learner.state / "account.key")
    kid = learner.json("account.json")["account_url"]
    return acme.Client(learner.lab.directory_url, key, kid, str(learner.lab.ca_bundle))


def status_at_ca(learner: Learner, certificate: x509.Certificate) -> dict[str, Any]:
    return learner.lab.pebble.certificate_status(certificate.serial_number)


def csr_of(learner: Learner) -> x509.CertificateSigningRequest:
    return x509.load_pem_x509_csr((learner.state / "pending/certificate.csr").read_bytes())


def names_of(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    extension = holder.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


def files_of(learner: Learner) -> dict[str, bytes]:
    return {name: (learner.state / name).read_bytes() for name in SET}


# 01


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_01_makes_an_account_key_of_the_type_in_the_settings(learner: Learner, key_type: str) -> None:
    learner.settings(account={"key_type": key_type})
    run = learner.run("01")
    key = private_key(learner.state / "account.key")
    assert kind_of(key) == key_type
    assert run.out == f"{learner.state / 'account.key'}\n"
    assert jws.thumbprint(key) in run.err


def test_01_makes_a_p256_key_when_the_settings_name_no_type(learner: Learner) -> None:
    learner.run("01")
    assert kind_of(private_key(learner.state / "account.key")) == "ec256"


def test_01_keeps_the_key_that_is_there_and_says_so(learner: Learner) -> None:
    learner.run("01")
    before = (learner.state / "account.key").read_bytes()
    learner.settings(account={"key_type": "rsa2048"})
    run = learner.run("01")
    assert (learner.state / "account.key").read_bytes() == before
    assert "kept" in run.err
    assert "wrote" not in run.err


def test_01_does_not_replace_a_file_that_is_no_key(learner: Learner) -> None:
    learner.state.mkdir(mode=0o700)
    (learner.state / "account.key").write_text("what an editor left here")
    run = learner.run("01", code=2)
    assert (learner.state / "account.key").read_text() == "what an editor left here"
    assert str(learner.state / "account.key") in run.err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_what_the_scripts_write_is_for_its_owner_only(issued: Learner) -> None:
    paths = [issued.state, *issued.state.rglob("*")]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    folders = [path for path in paths if path.is_dir() and not path.is_symlink()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


# 02


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_02_makes_a_certificate_key_of_the_type_in_the_settings(learner: Learner, key_type: str) -> None:
    learner.settings(certificate={"key_type": key_type})
    learner.series("01", "02")
    key = private_key(learner.state / "pending/certificate.key")
    assert kind_of(key) == key_type
    assert spki(csr_of(learner)) == spki(key)
    assert csr_of(learner).is_signature_valid


def test_02_makes_an_rsa_2048_key_when_the_settings_name_no_type(learner: Learner) -> None:
    learner.series("01", "02")
    assert kind_of(private_key(learner.state / "pending/certificate.key")) == "rsa2048"


def test_02_puts_every_name_into_the_san_and_nothing_into_the_subject(learner: Learner) -> None:
    domains = ["example.test", "*.example.test", "shop.workshop.com.test"]
    learner.settings(domains=domains)
    learner.run("01")
    run = learner.run("02")
    csr = csr_of(learner)
    assert list(csr.subject) == []
    assert names_of(csr) == domains
    assert run.out == f"{learner.state / 'pending/certificate.csr'}\n"


def test_02_asks_for_no_ocsp_must_staple(learner: Learner) -> None:
    learner.series("01", "02")
    assert [extension.oid for extension in csr_of(learner).extensions] == [
        x509.SubjectAlternativeName.oid
    ]  # Let's Encrypt refuses must-staple since 2025


@pytest.mark.parametrize(
    ("written", "in_csr"),
    [
        ("bücher.example.test", "xn--bcher-kva.example.test"),
        ("*.BÜCHER.example.test", "*.xn--bcher-kva.example.test"),
        ("faß.example.test", "xn--fa-hia.example.test"),
        ("例え.example.test", "xn--r8jz45g.example.test"),
        ("WWW.Example.Test.", "www.example.test"),
    ],
)
def test_02_writes_names_as_a_labels_in_lower_case(learner: Learner, written: str, in_csr: str) -> None:
    learner.settings(domains=[written])
    learner.series("01", "02")
    assert names_of(csr_of(learner)) == [in_csr]


def test_02_asks_once_for_a_name_that_is_written_twice(learner: Learner) -> None:
    learner.settings(domains=["example.test", "www.example.test", "EXAMPLE.test"])
    learner.series("01", "02")
    assert names_of(csr_of(learner)) == ["example.test", "www.example.test"]


LONG_NAME = ".".join(["a" * 60] * 4) + ".example.test"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("www..example.test", "www..example.test"),
        (".example.test", ".example.test"),
        ("b" * 64 + ".example.test", "b" * 64),
        (LONG_NAME, LONG_NAME[:40]),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("localhost", "localhost"),
        ("www.*.example.test", "www.*.example.test"),
        ("w*.example.test", "w*.example.test"),
        ("*.*.example.test", "*.*.example.test"),
        ("-www.example.test", "-www.example.test"),
        ("under_score.example.test", "under_score.example.test"),
        ("www.example.test/path", "www.example.test/path"),
        ("https://www.example.test", "https://www.example.test"),
        ("xn--a.example.test", "xn--a.example.test"),
    ],
)
def test_02_refuses_a_name_that_cannot_be_and_says_where_it_stands(
    learner: Learner, name: str, told: str
) -> None:
    learner.settings(domains=["good.example.test", name])
    run = learner.run("02", code=2)
    error = next(line for line in run.err.splitlines() if line.startswith("error:"))
    assert f"{learner.ini}: [certificate] domains: {told}" in error
    assert run.out == ""
    assert not learner.state.exists()


def test_02_refuses_the_hundred_and_first_name(learner: Learner) -> None:
    names = [f"n{number}.example.test" for number in range(1, 102)]
    learner.run("01")
    learner.settings(domains=names)
    run = learner.run("02", code=2)
    assert f"{learner.ini}: [certificate] domains: n101.example.test" in run.err
    learner.settings(domains=names[:100])
    learner.run("02")
    assert names_of(csr_of(learner)) == names[:100]


def test_02_keeps_the_pending_key_and_makes_the_csr_anew_for_other_names(learner: Learner) -> None:
    learner.series("01", "02")
    key = (learner.state / "pending/certificate.key").read_bytes()
    learner.settings(domains=["www.example.test"])
    run = learner.run("02")
    assert "kept" in run.err
    assert (learner.state / "pending/certificate.key").read_bytes() == key
    assert names_of(csr_of(learner)) == ["www.example.test"]


def test_02_says_when_the_pending_key_is_not_of_the_type_in_the_settings(learner: Learner) -> None:
    learner.series("01", "02")
    assert "and [certificate] key_type is" not in learner.run("02").err
    learner.settings(certificate={"key_type": "ec384"})
    assert "is rsa2048, and [certificate] key_type is ec384" in learner.run("02").err


def test_02_refuses_the_account_key_as_certificate_key(learner: Learner) -> None:
    learner.series("01", "02")
    (learner.state / "pending/certificate.csr").unlink()
    shutil.copy(learner.state / "account.key", learner.state / "pending/certificate.key")
    run = learner.run("02", code=2)
    assert "is the account's key" in run.err
    assert not (learner.state / "pending/certificate.csr").exists()


def test_02_makes_a_new_key_for_the_next_certificate(renewer: Learner) -> None:
    renewer.run("02")
    assert spki(private_key(renewer.state / "pending/certificate.key")) != spki(renewer.chain()[0])


# 03


def test_03_shows_directory_terms_nonce_and_new_account_in_this_order(learner: Learner) -> None:
    learner.run("01")
    run = learner.run("03")
    headings = [line[4:] for line in run.err.splitlines() if line.startswith("03  ")]
    titles = [heading.partition("   ")[0].strip() for heading in headings]
    assert titles[:4] == ["directory", "terms of service", "newNonce", "newAccount"]
    exchanges = [line.split() for line in run.err.splitlines() if line.startswith("--> ")]
    assert [words[1] for words in exchanges] == ["GET", "HEAD", "POST", "POST"]


def test_03_says_that_unknown_directory_entries_are_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    directory = {"newNonce": "https://ca.test/nonce", "Zx91": "https://community.ca.test/adding-entries"}
    load_script("03").show_directory(SimpleNamespace(directory=directory))
    shown = capsys.readouterr().err
    assert "unknown, and so ignored" in shown[shown.index("Zx91") :]
    assert "ignored" not in shown[: shown.index("Zx91")]


def test_03_makes_an_account_that_is_valid_at_the_ca(learner: Learner) -> None:
    learner.run("01")
    run = learner.run("03")
    assert "a new one" in run.err
    account = learner.json("account.json")
    assert run.out == account["account_url"] + "\n"
    assert account["directory"] == learner.lab.directory_url
    assert client(learner).post_as_get(account["account_url"]).body["status"] == "valid"


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_03_registers_an_account_key_of_every_type(learner: Learner, key_type: str) -> None:
    learner.settings(account={"key_type": key_type})
    learner.series("01", "03")
    assert learner.json("account.json")["status"] == "valid"


def test_03_goes_no_further_when_the_terms_are_not_agreed_to(learner: Learner) -> None:
    learner.run("01")
    learner.settings(acme={"agree_to_terms_of_service": "no"})
    run = learner.run("03", code=2)
    terms = learner.lab.pebble.get(learner.lab.directory_url)
    url = json.loads(terms)["meta"]["termsOfService"]
    error = run.err[run.err.index("error:") :]
    assert url in error
    assert "agree_to_terms_of_service = yes" in error
    assert "--> POST" not in run.err
    assert not (learner.state / "account.json").exists()


def test_03_finds_the_account_again_when_account_json_is_lost(learner: Learner) -> None:
    learner.run("01")
    first = learner.run("03")
    (learner.state / "account.json").unlink()
    second = learner.run("03")
    assert second.out == first.out
    assert "the one that this key already had" in second.err
    assert "<-- 200 OK" in second.err
    assert "<-- 201" not in second.err


def test_03_info_reads_the_account_back_and_sends_nothing_else(learner: Learner) -> None:
    learner.run("01")
    made = learner.run("03")
    run = learner.run("03", "--info")
    assert run.out == made.out
    posts = [line for line in run.err.splitlines() if line.startswith("--> POST")]
    assert posts == [f"--> POST {made.out.strip()}"]
    assert "POST-as-GET" in run.err
    assert '"status": "valid"' in run.err


def test_03_info_without_an_account_names_the_script_that_makes_one(learner: Learner) -> None:
    learner.run("01")
    assert "run 03_new_account.py first" in learner.run("03", "--info", code=2).err


def test_03_find_makes_no_account(learner: Learner) -> None:
    learner.run("01")
    run = learner.run("03", "--find", code=1)
    assert "accountDoesNotExist" in run.err
    assert "03_new_account.py" in run.err[run.err.index("what to do:") :]
    assert run.out == ""
    assert not (learner.state / "account.json").exists()
    assert "<-- 201" in learner.run("03").err


def test_03_find_finds_an_account_without_agreeing_to_anything(learner: Learner) -> None:
    learner.run("01")
    made = learner.run("03")
    (learner.state / "account.json").unlink()
    learner.settings(acme={"agree_to_terms_of_service": "no"})
    run = learner.run("03", "--find")
    assert run.out == made.out
    assert '"onlyReturnExisting": true' in run.err
    assert "termsOfServiceAgreed" not in run.err


def test_03_sends_a_changed_contact_once(learner: Learner) -> None:
    learner.run("01")
    learner.settings(acme={"contact": "mailto:first@example.test"})
    made = learner.run("03")
    assert "account update" not in made.err
    learner.settings(acme={"contact": "mailto:second@example.test, mailto:third@example.test"})
    assert "account update" in learner.run("03").err
    at_ca = client(learner).post_as_get(made.out.strip()).body
    assert at_ca["contact"] == ["mailto:second@example.test", "mailto:third@example.test"]
    assert "account update" not in learner.run("03").err


def test_03_takes_a_contact_back(learner: Learner) -> None:
    learner.run("01")
    learner.settings(acme={"contact": "mailto:first@example.test"})
    made = learner.run("03")
    learner.settings()
    assert "account update" in learner.run("03").err
    assert not client(learner).post_as_get(made.out.strip()).body.get("contact")
    assert "account update" not in learner.run("03").err


def test_an_account_is_never_shown_to_another_ca(holder: Learner) -> None:
    holder.series("02", "04")
    other = "https://127.0.0.1:1/another-ca/directory"
    holder.settings(acme={"directory": other})
    for number in ("03", "04", "05", "06", "09"):
        run = holder.run(number, code=2)
        error = run.err[run.err.index("error:") :]
        assert other in error
        assert holder.lab.directory_url in error
        assert "--> " not in run.err


def test_03_binds_the_account_to_the_customer_that_the_ca_knows(
    new_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    hmac_key = jws.b64url(secrets.token_bytes(32))
    lab = new_lab(eab_keys={"customer-1": hmac_key}, eab_required=True)
    eab = {"eab_key_id": "customer-1", "eab_hmac_key_file": "eab.key"}

    without = Learner(tmp_path / "without", lab)
    without.run("01")
    run = without.run("03", code=1)
    assert "externalAccountRequired" in run.err
    assert "eab_key_id and eab_hmac_key_file" in run.err[run.err.index("what to do:") :]
    assert not (without.state / "account.json").exists()

    wrong = Learner(tmp_path / "wrong", lab, acme=eab)
    wrong_key = jws.b64url(secrets.token_bytes(32))
    (wrong.folder / "eab.key").write_text(wrong_key)
    wrong.run("01")
    run = wrong.run("03", code=1)
    assert wrong_key not in run.all
    assert not (wrong.state / "account.json").exists()

    right = Learner(tmp_path / "right", lab, acme=eab)
    (right.folder / "eab.key").write_text(hmac_key + "\n")
    right.run("01")
    run = right.run("03")
    assert right.json("account.json")["status"] == "valid"
    assert '"externalAccountBinding"' in run.err
    assert hmac_key not in run.all + (right.state / "trace.jsonl").read_text()
    # The second run finds the account that the first one bound.
    assert right.run("03").out == run.out


@pytest.mark.parametrize("content", [None, "", "not base64url!", "ключ"])
def test_03_says_which_eab_file_it_cannot_use(learner: Learner, content: str | None) -> None:
    learner.settings(acme={"eab_key_id": "customer-1", "eab_hmac_key_file": "eab.key"})
    if content is not None:
        (learner.folder / "eab.key").write_text(content, encoding="utf-8")
    learner.run("01")
    run = learner.run("03", code=2)
    error = run.err[run.err.index("error:") :]
    assert str(learner.folder / "eab.key") in error
    assert "eab_hmac_key_file" in error
    assert not content or content not in error


def test_03_wants_the_hmac_key_file_with_the_key_id(learner: Learner) -> None:
    learner.settings(acme={"eab_key_id": "customer-1"})
    learner.run("01")
    assert f"{learner.ini}: [acme] eab_hmac_key_file" in learner.run("03", code=2).err


# 04


def test_04_orders_every_name_of_the_csr(orderer: Callable[..., Learner]) -> None:
    learner = orderer("example.test", "*.example.test", "www.dev.example.test")
    saved = learner.json("pending/order.json")
    order = client(learner).post_as_get(saved["order_url"]).body
    assert {name["value"] for name in order["identifiers"]} == set(names_of(csr_of(learner)))
    assert order["status"] == "pending"


def test_04_resumes_the_pending_order(orderer: Callable[..., Learner]) -> None:
    learner = orderer("example.test", "www.example.test")
    first = learner.json("pending/order.json")["order_url"]
    run = learner.run("04")
    assert run.out == first + "\n"
    assert learner.json("pending/order.json")["order_url"] == first
    assert "newOrder" not in run.err
    assert "resumed" in run.err


def test_04_orders_anew_when_the_names_have_changed(orderer: Callable[..., Learner]) -> None:
    learner = orderer("example.test", "www.example.test")
    first = learner.json("pending/order.json")["order_url"]
    learner.settings(domains=["example.test"])
    learner.run("02")
    second = learner.run("04").out.strip()
    assert second != first
    order = client(learner).post_as_get(second).body
    assert [name["value"] for name in order["identifiers"]] == ["example.test"]


@pytest.mark.parametrize("why", ["unknown to the CA", "of another account"])
def test_04_orders_anew_when_the_order_cannot_be_had(
    orderer: Callable[..., Learner], learner: Learner, why: str
) -> None:
    mine = orderer("www.example.test")
    if why == "unknown to the CA":
        lost = mine.json("pending/order.json")["order_url"] + "gone"
    else:
        learner.settings(domains=["www.example.test"])
        learner.series("01", "02", "03", "04")
        lost = learner.json("pending/order.json")["order_url"]
    (mine.state / "pending/order.json").write_text(json.dumps({"order_url": lost, "order": {}}))
    new = mine.run("04").out.strip()
    assert new != lost
    assert mine.json("pending/order.json")["order_url"] == new
    assert client(mine).post_as_get(new).body["status"] == "pending"


def test_04_05_and_06_say_in_words_that_the_saved_order_is_damaged(orderer: Callable[..., Learner]) -> None:
    learner = orderer("www.example.test")
    for number, content in (("04", ""), ("05", "{"), ("06", "[]"), ("04", "{}"), ("05", '{"order_url": 1}')):
        (learner.state / "pending/order.json").write_text(content)
        run = learner.run(number, code=2)
        assert str(learner.state / "pending/order.json") in run.err
        assert "04_new_order.py" in run.err[run.err.index("what to do:") :]


def test_04_says_what_profiles_the_ca_offers_when_it_has_not_the_one_asked_for() -> None:
    offered = {"classic": "https://ca.test/docs#classic", "shortlived": "https://ca.test/docs#shortlived"}
    ca = SimpleNamespace(directory={"meta": {"profiles": offered}})
    script = load_script("04")
    with pytest.raises(Usage, match="no profile tlsserver; it offers classic, shortlived"):
        script.check_profile(ca, "tlsserver")
    script.check_profile(ca, "shortlived")
    script.check_profile(ca, None)


def test_04_sends_the_profile_with_the_order() -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    ca = SimpleNamespace(
        url=lambda resource: f"https://ca.test/{resource}",
        post=lambda url, payload: sent.append((url, payload)),
    )
    load_script("04").new_order(ca, ["example.test"], "shortlived")
    identifiers = [{"type": "dns", "value": "example.test"}]
    assert sent == [("https://ca.test/newOrder", {"identifiers": identifiers, "profile": "shortlived"})]


def test_04_orders_nothing_when_the_ca_has_not_the_profile(orderer: Callable[..., Learner]) -> None:
    learner = orderer("www.example.test")
    (learner.state / "pending/order.json").unlink()
    learner.settings(domains=["www.example.test"], acme={"profile": "tlsserver"})
    run = learner.run("04", code=2)
    assert "no profile tlsserver" in run.err
    # Older Pebbles offer no profiles at all, newer ones a default.
    directory = json.loads(learner.lab.pebble.get(learner.lab.directory_url))
    assert f"it offers {', '.join(directory['meta'].get('profiles', ())) or 'no profiles'}" in run.err
    assert "--> POST" not in run.err
    assert not (learner.state / "pending/order.json").exists()


def test_04_names_the_ready_order_s_next_step(renewer: Learner) -> None:
    renewer.run("02")
    run = renewer.run("04")
    assert run.err.splitlines()[-1] == "next  06_finalize.py"


# 06


def test_06_gets_a_certificate_for_the_key_and_the_names(issued: Learner) -> None:
    leaf, *issuers = issued.chain()
    assert spki(leaf) == spki(private_key(issued.state / "certificate.key"))
    assert set(names_of(leaf)) == {"example.test", "*.example.test"}
    roots = x509.load_pem_x509_certificates(issued.lab.issuer_roots().encode())
    links = [leaf, *issuers]
    for certificate, issuer in zip(links, links[1:], strict=False):
        certificate.verify_directly_issued_by(issuer)
    links[-1].verify_directly_issued_by(next(root for root in roots if root.subject == links[-1].issuer))
    assert status_at_ca(issued, leaf)["Status"] == "Valid"


def test_06_writes_leaf_chain_and_both_together(issued: Learner) -> None:
    files = files_of(issued)
    assert files["fullchain.pem"] == files["certificate.pem"] + files["chain.pem"]
    assert files["certificate.pem"].count(b"BEGIN CERTIFICATE") == 1
    assert files["chain.pem"].count(b"BEGIN CERTIFICATE") >= 1


def test_06_leaves_nothing_pending(issued: Learner) -> None:
    assert list((issued.state / "pending").iterdir()) == []


def test_06_before_05_names_05(orderer: Callable[..., Learner]) -> None:
    learner = orderer("www.example.test")
    run = learner.run("06", code=2)
    assert "run 05_dns_challenge.py first" in run.err
    assert "finalize-order" not in "".join(line for line in run.err.splitlines() if line.startswith("--> "))


def test_06_moves_the_set_it_replaces_to_history(renewer: Learner) -> None:
    old, old_serial = files_of(renewer), renewer.serial()
    renewer.series("02", "04", "06")
    new, new_serial = files_of(renewer), renewer.serial()
    assert new_serial != old_serial
    history = renewer.state / "history"
    assert {path.name for path in history.iterdir()} == {old_serial, new_serial}
    assert {name: (history / old_serial / name).read_bytes() for name in SET} == old
    assert new["certificate.key"] != old["certificate.key"]
    assert list((renewer.state / "pending").iterdir()) == []


def test_06_shows_a_matching_set_to_a_reader_at_every_moment(renewer: Learner) -> None:
    renewer.series("02", "04")
    keys_of = {
        spki(renewer.chain()[0]): "old",
        spki(private_key(renewer.state / "pending/certificate.key")): "new",
    }
    seen: list[tuple[str, str]] = []
    mixed: list[str] = []
    stop = threading.Event()

    def read() -> None:
        # As a web server does that is told to reload at a bad moment: the folder first, then its files.
        while not stop.is_set():
            folder = (renewer.state / "certificate.key").resolve().parent
            key = keys_of[spki(private_key(folder / "certificate.key"))]
            leaf = keys_of[spki(x509.load_pem_x509_certificates((folder / "fullchain.pem").read_bytes())[0])]
            alone = keys_of[spki(x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes()))]
            if not key == leaf == alone:
                mixed.append(f"{key} {leaf} {alone}")
            seen.append((key, leaf))
            # And by the plain names, any two of which may be read on either side of the one moment.
            for name in SET:
                (renewer.state / name).read_bytes()

    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            read()
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=guarded)
    reader.start()
    try:
        renewer.run("06")
    finally:
        stop.set()
        reader.join()
    assert failures == []
    assert mixed == []
    assert ("old", "old") in seen
    assert spki(renewer.chain()[0]) == spki(private_key(renewer.state / "certificate.key"))


def test_06_takes_the_chain_that_the_settings_prefer(renewer: Learner) -> None:
    roots = x509.load_pem_x509_certificates(renewer.lab.issuer_roots().encode())
    assert len(roots) == 3
    for root in roots:
        name = str(root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        renewer.settings(acme={"preferred_chain": name})
        renewer.series("02", "04")
        run = renewer.run("06")
        chain = renewer.chain()
        assert len(chain) == 4
        chain[-1].verify_directly_issued_by(root)
        assert "note:" not in run.err


def test_06_takes_the_default_chain_when_none_ends_at_the_preferred_issuer(renewer: Learner) -> None:
    renewer.settings(acme={"preferred_chain": "Nobody's Root"})
    renewer.series("02", "04")
    run = renewer.run("06", "--quiet")
    assert "Nobody's Root" in run.err
    roots = x509.load_pem_x509_certificates(renewer.lab.issuer_roots().encode())
    for root in roots:
        assert str(root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value) in run.err
    renewer.chain()[-1].verify_directly_issued_by(roots[0])


def finalize_by_hand(learner: Learner) -> None:
    """What 06 had done when it was killed before the CA's answer arrived."""
    ca = client(learner)
    order = ca.post_as_get(learner.json("pending/order.json")["order_url"]).body
    csr = csr_of(learner).public_bytes(serialization.Encoding.DER)
    ca.post(order["finalize"], {"csr": jws.b64url(csr)})


def test_06_goes_on_after_a_kill_between_finalize_and_download(renewer: Learner) -> None:
    renewer.series("02", "04")
    key = (renewer.state / "pending/certificate.key").read_bytes()
    finalize_by_hand(renewer)
    run = renewer.run("06")
    assert "finalize-order" not in "".join(line for line in run.err.splitlines() if line.startswith("--> "))
    assert (renewer.state / "certificate.key").read_bytes() == key
    assert spki(renewer.chain()[0]) == spki(private_key(renewer.state / "certificate.key"))


def test_06_goes_on_after_a_kill_before_pending_was_emptied(renewer: Learner, tmp_path: Path) -> None:
    renewer.series("02", "04")
    shutil.copytree(renewer.state / "pending", tmp_path / "pending")
    renewer.run("06")
    serial = renewer.serial()
    shutil.copytree(tmp_path / "pending", renewer.state / "pending", dirs_exist_ok=True)
    renewer.run("06")
    assert renewer.serial() == serial
    assert spki(renewer.chain()[0]) == spki(private_key(renewer.state / "certificate.key"))
    assert list((renewer.state / "pending").iterdir()) == []


def test_06_replaces_nothing_when_the_certificate_is_for_another_key(renewer: Learner) -> None:
    renewer.series("02", "04")
    before = files_of(renewer)
    finalize_by_hand(renewer)
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (renewer.state / "pending/certificate.key").write_bytes(other)
    run = renewer.run("06", code=1)
    assert "another key" in run.err
    assert files_of(renewer) == before


def test_06_replaces_nothing_when_the_certificate_lacks_a_name(renewer: Learner) -> None:
    renewer.series("02", "04")
    before = files_of(renewer)
    finalize_by_hand(renewer)
    renewer.settings(domains=["example.test", "*.example.test", "more.example.test"])
    renewer.run("02")
    run = renewer.run("06", code=1)
    assert "lacks more.example.test" in run.err
    assert files_of(renewer) == before


def test_06_says_why_the_ca_did_not_take_the_csr(renewer: Learner) -> None:
    renewer.series("02", "04")
    # The CA refuses a CSR with the account's key, and 02 would not make it.
    shutil.copy(renewer.state / "account.key", renewer.state / "pending/certificate.key")
    csr = load_script("02").create_csr(
        private_key(renewer.state / "account.key"), ["example.test", "*.example.test"]
    )
    (renewer.state / "pending/certificate.csr").write_bytes(csr)
    before = files_of(renewer)
    run = renewer.run("06", code=1)
    assert "error: POST" in run.err
    assert "what to do:" in run.err
    assert files_of(renewer) == before


def test_06_does_not_ask_for_other_names_than_were_ordered(renewer: Learner) -> None:
    renewer.series("02", "04")
    before = files_of(renewer)
    renewer.settings(domains=["example.test", "*.example.test", "more.example.test"])
    renewer.run("02")
    run = renewer.run("06", code=2)
    assert "but the CSR for example.test, *.example.test, more.example.test" in run.err
    assert "with 04 and 05" in run.err
    assert files_of(renewer) == before


def test_06_does_not_poll_before_the_moment_that_finalize_asked_for() -> None:
    """finalize answers "processing" and Retry-After: the first question comes after that."""
    script, asked = load_script("06"), []
    later = {"status": "valid", "certificate": "https://ca.example/certificate"}
    ca = acme.Client.__new__(acme.Client)
    ca.post = lambda *_: SimpleNamespace(  # type: ignore[method-assign]
        object=lambda **_: {"status": "processing"}, body={"status": "processing"}, retry_after=0.5
    )
    ready = {
        "status": "ready",
        "finalize": "https://ca.example/finalize",
        "identifiers": [{"value": "a.example"}],
    }

    def post_as_get(url: str, brief: bool = False) -> Any:
        asked.append(time.monotonic())
        body = ready if len(asked) == 1 else later
        return SimpleNamespace(object=lambda **_: body, body=body, retry_after=None)

    ca.post_as_get = post_as_get  # type: ignore[method-assign]
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.load_pem_x509_csr(load_script("02").create_csr(key, ["a.example"]))
    assert script.issued_order(ca, "https://ca.example/order", csr) == later
    assert asked[1] - asked[0] >= 0.5


def test_06_says_that_a_pfx_has_become_old(renewer: Learner) -> None:
    renewer.series("02", "04", "06")
    (renewer.state / "certificate.pfx").write_bytes(b"of the certificate before")
    renewer.series("02", "04")
    renewer.settings(iis={"password_file": None})
    assert "run 10_pkcs12_iis.py" in renewer.run("06").err


def test_06_names_the_script_that_makes_a_missing_file_of_the_order(renewer: Learner) -> None:
    renewer.series("02", "04")
    (renewer.state / "pending/certificate.csr").unlink()
    assert "run 02_create_cert_key_csr.py first" in renewer.run("06", code=2).err


# 09


@pytest.fixture
def revocable(renewer: Learner) -> Learner:
    """A learner with a certificate of one's own, which may be revoked."""
    renewer.series("02", "04", "06")
    return renewer


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("unspecified", 0),
        ("keyCompromise", 1),
        ("affiliationChanged", 3),
        ("superseded", 4),
        ("cessationOfOperation", 5),
    ],
)
def test_09_revokes_for_every_reason(revocable: Learner, reason: str, code: int) -> None:
    run = revocable.run("09", "--reason", reason)
    status = status_at_ca(revocable, revocable.chain()[0])
    assert status["Status"] == "Revoked"
    assert status.get("Reason", 0) == code
    assert run.out == revocable.serial() + "\n"


def test_09_says_that_a_certificate_was_revoked_already(revocable: Learner) -> None:
    revocable.run("09")
    run = revocable.run("09")
    assert "already" in run.err
    assert run.out == revocable.serial() + "\n"


def test_09_revokes_with_the_certificate_s_key_and_no_account(revocable: Learner) -> None:
    (revocable.state / "account.json").unlink()
    (revocable.state / "account.key").unlink()
    run = revocable.run("09", "--with-certificate-key", "--reason", "keyCompromise")
    status = status_at_ca(revocable, revocable.chain()[0])
    assert (status["Status"], status["Reason"]) == ("Revoked", 1)
    assert '"jwk"' in run.err
    assert '"kid"' not in run.err


@pytest.mark.parametrize("file", ["certificate.pem", "fullchain.pem"])
@pytest.mark.parametrize("options", [(), ("--with-certificate-key",)])
def test_09_revokes_the_certificate_that_is_named(
    revocable: Learner, file: str, options: tuple[str, ...]
) -> None:
    old, old_serial = revocable.chain()[0], revocable.serial()
    revocable.series("02", "04", "06")
    run = revocable.run("09", *options, str(revocable.state / "history" / old_serial / file))
    assert run.out == old_serial + "\n"
    assert status_at_ca(revocable, old)["Status"] == "Revoked"
    assert status_at_ca(revocable, revocable.chain()[0])["Status"] == "Valid"


def test_09_refuses_the_key_of_another_certificate(renewer: Learner, tmp_path: Path) -> None:
    shutil.copy(renewer.state / "certificate.pem", tmp_path / "some.pem")
    shutil.copy(renewer.state / "account.key", tmp_path / "some.key")
    run = renewer.run("09", "--with-certificate-key", str(tmp_path / "some.pem"), code=2)
    assert f"{tmp_path / 'some.key'} is not the key of {tmp_path / 'some.pem'}" in run.err
    assert status_at_ca(renewer, renewer.chain()[0])["Status"] == "Valid"


@pytest.mark.parametrize("reason", ["bored", "6", "cACompromise"])
def test_09_takes_no_other_reason(renewer: Learner, reason: str) -> None:
    run = renewer.run("09", "--reason", reason, code=2)
    assert reason in run.err
    assert status_at_ca(renewer, renewer.chain()[0])["Status"] == "Valid"


def test_09_says_which_file_is_missing_or_is_no_certificate(renewer: Learner, tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    assert str(missing) in renewer.run("09", str(missing), code=2).err
    text = tmp_path / "text.pem"
    text.write_text("hello\n")
    assert str(text) in renewer.run("09", str(text), code=None).err


def test_09_is_told_by_the_ca_that_a_stranger_may_not_revoke(renewer: Learner, tmp_path: Path) -> None:
    stranger = Learner(tmp_path / "stranger", renewer.lab)
    stranger.series("01", "03")
    run = stranger.run("09", str(renewer.state / "certificate.pem"), code=1)
    assert "unauthorized" in run.err
    assert status_at_ca(renewer, renewer.chain()[0])["Status"] == "Valid"


# What cannot be reached, and what must not be


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nothing listens on, and that no one else can take meanwhile."""
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_03_says_in_a_sentence_that_the_ca_is_down(learner: Learner, closed_port: int) -> None:
    learner.run("01")
    url = f"https://127.0.0.1:{closed_port}/dir"
    learner.settings(acme={"directory": url})
    run = learner.run("03", code=1)
    error = run.err[run.err.index("error:") :]
    assert error.startswith(f"error: GET {url}: ")
    assert "refused" in error
    assert "what to do: check the network" in error
    assert "object at 0x" not in error


@pytest.mark.parametrize("number", ["01", "02", "03", "04", "05", "06", "09"])
def test_a_plain_http_ca_is_refused_before_anything_else(learner: Learner, number: str) -> None:
    learner.settings(acme={"directory": "http://127.0.0.1:14000/dir"})
    run = learner.run(number, code=2)
    assert f"{learner.ini}: [acme] directory" in run.err
    assert "https" in run.err
    assert not learner.state.exists()


def test_03_refuses_a_ca_whose_root_it_does_not_know(learner: Learner) -> None:
    learner.run("01")
    learner.settings(acme={"ca_bundle": None})
    run = learner.run("03", code=1)
    assert "certificate verify failed" in run.err
    assert "ca_bundle" in run.err[run.err.index("what to do:") :]
    assert not (learner.state / "account.json").exists()


def test_03_names_a_ca_bundle_that_is_not_there(learner: Learner) -> None:
    learner.run("01")
    learner.settings(acme={"ca_bundle": "nowhere.pem"})
    run = learner.run("03", code=2)
    assert f"{learner.ini}: [acme] ca_bundle" in run.err
    assert "nowhere.pem" in run.err


@pytest.mark.parametrize("path", ["/", "/nothing-here"])
def test_03_says_that_an_address_is_not_an_acme_directory(learner: Learner, path: str) -> None:
    learner.run("01")
    learner.settings(acme={"directory": learner.lab.directory_url.removesuffix("/dir") + path})
    run = learner.run("03", code=1)
    assert "error:" in run.err
    assert "what to do:" in run.err

"""10_pkcs12_iis.py: the PFX file, opened and looked into, and the PowerShell that goes with it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PASSWORD, SCRIPTS, Learner, clean_environment
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs12

# Object identifiers as DER writes them.
PBES1_3DES = bytes.fromhex("060a2a864886f70d010c0103")  # pbeWithSHAAnd3-KeyTripleDES-CBC, RFC 7292 appendix C
PBES2 = bytes.fromhex("06092a864886f70d01050d")  # RFC 8018 appendix A.4
PBKDF2 = bytes.fromhex("06092a864886f70d01050c")  # RFC 8018 appendix A.2
HMAC_SHA256 = bytes.fromhex("06082a864886f70d0209")  # RFC 8018 appendix B.1.2
AES256_CBC = bytes.fromhex("060960864801650304012a")  # RFC 3565
SHA1 = bytes.fromhex("06052b0e03021a")
SHA256 = bytes.fromhex("0609608648016503040201")
RC2_40 = bytes.fromhex("060a2a864886f70d010c0106")


def der_elements(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of each element, one after the other (X.690 section 8.1)."""
    elements = []
    while der:
        length, start = der[1], 2
        if length & 0x80:
            start = 2 + (length & 0x7F)
            length = int.from_bytes(der[2:start], "big")
        elements.append((der[0], der[start : start + length]))
        der = der[start + length :]
    return elements


def mac_digest(pfx: bytes) -> bytes:
    """The digest's object identifier in MacData, the third member of a PFX (RFC 7292 section 4)."""
    ((_, members),) = der_elements(pfx)
    _version, _auth_safe, (_, mac_data) = der_elements(members)
    return mac_data


def packed(learner: Learner) -> bytes:
    return (learner.state / "certificate.pfx").read_bytes()


def key_der(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize("windows", ["2012", "2016", "2019", "2022", "2025"])
def test_the_pfx_holds_key_leaf_and_the_whole_chain(holder: Learner, windows: str) -> None:
    holder.settings(iis={"windows": windows})
    holder.run("10")
    pfx = pkcs12.load_pkcs12(packed(holder), PASSWORD.encode())
    leaf, *issuers = holder.chain()
    assert issuers
    assert pfx.cert and pfx.cert.certificate == leaf
    assert [issuer.certificate for issuer in pfx.additional_certs] == issuers
    key = serialization.load_pem_private_key((holder.state / "certificate.key").read_bytes(), None)
    assert key_der(pfx.key) == key_der(key)


@pytest.mark.parametrize("windows", ["2012", "2016"])
def test_old_windows_gets_3des_with_sha1(holder: Learner, windows: str) -> None:
    holder.settings(iis={"windows": windows})
    holder.run("10")
    pfx = packed(holder)
    # The certificates' bag and the key's, each with its own.
    assert pfx.count(PBES1_3DES) == 2
    assert pfx.count(PBES2) == pfx.count(RC2_40) == 0
    assert SHA1 in mac_digest(pfx)
    assert SHA256 not in mac_digest(pfx)


@pytest.mark.parametrize("windows", ["2019", "2022", "2025", None])
def test_new_windows_gets_aes256_with_sha256(holder: Learner, windows: str | None) -> None:
    holder.settings(iis={"windows": windows})
    holder.run("10")
    pfx = packed(holder)
    assert [pfx.count(oid) for oid in (PBES2, PBKDF2, HMAC_SHA256, AES256_CBC)] == [2, 2, 2, 2]
    assert pfx.count(PBES1_3DES) == pfx.count(RC2_40) == 0
    assert SHA256 in mac_digest(pfx)
    assert SHA1 not in mac_digest(pfx)


def test_the_pfx_opens_with_no_other_password(holder: Learner) -> None:
    holder.run("10")
    for wrong in (None, b"", PASSWORD.encode() + b"\n", PASSWORD.upper().encode()):
        with pytest.raises(ValueError, match="(?i)password"):
            pkcs12.load_pkcs12(packed(holder), wrong)


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("pa ss'word\n", "pa ss'word"),
        ("pässwörd 密码", "pässwörd 密码"),
        (" with spaces at both ends \r\n", " with spaces at both ends "),
    ],
)
def test_the_password_file_s_line_is_the_password(holder: Learner, written: str, password: str) -> None:
    (holder.folder / "pfx-password.txt").write_bytes(written.encode())
    run = holder.run("10")
    assert pkcs12.load_pkcs12(packed(holder), password.encode()).key is not None
    assert password not in run.all + (holder.state / "trace.jsonl").read_text()


def test_the_friendly_name_tells_certificates_apart(holder: Learner) -> None:
    holder.run("10")
    pfx = pkcs12.load_pkcs12(packed(holder), PASSWORD.encode())
    assert pfx.cert and pfx.cert.friendly_name
    assert pfx.cert.friendly_name.decode() == f"example.test {holder.serial()}"


def test_openssl_reads_both_kinds(holder: Learner) -> None:
    openssl = shutil.which("openssl")
    for windows in ("2016", "2022") if openssl else ():
        holder.settings(iis={"windows": windows})
        holder.run("10")
        command = [str(openssl), "pkcs12", "-in", str(holder.state / "certificate.pfx"), "-nodes"]
        command += ["-passin", f"file:{holder.folder / 'pfx-password.txt'}"]
        # OpenSSL 3 reads 3DES without asking for its legacy provider, and older ones anyway.
        read = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert read.returncode == 0, read.stderr
        assert read.stdout.count("BEGIN CERTIFICATE") == len(holder.chain())


@pytest.mark.parametrize("content", [None, "", "\n", b"\xff\xfe\x00"])
def test_an_unusable_password_file_is_named_and_no_pfx_written(
    holder: Learner, content: str | bytes | None
) -> None:
    file = holder.folder / "pfx-password.txt"
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    run = holder.run("10", code=2)
    assert "password" in run.err
    assert not (holder.state / "certificate.pfx").exists()


def test_without_a_file_and_without_a_terminal_the_setting_is_named(holder: Learner) -> None:
    holder.settings(iis={"password_file": None})
    run = holder.run("10", code=2)
    assert "[iis] password_file" in run.err
    assert not (holder.state / "certificate.pfx").exists()


def type_passwords(learner: Learner, *passwords: str) -> subprocess.CompletedProcess[bytes]:
    """Run 10 with a terminal as its keyboard, and type."""
    import pty

    keyboard, terminal = pty.openpty()
    # With no terminal of its own to ask, getpass turns to standard input.
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS["10"]), "--config", str(learner.ini)],
        cwd=learner.folder,
        env=clean_environment(),
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(terminal)
    assert process.stderr
    said = b""
    try:
        # What is typed before a prompt is shown would be thrown away.
        for prompt, password in zip(
            (b"password for the PFX file: ", b"the same again: "), passwords, strict=True
        ):
            while not said.endswith(prompt):
                piece = os.read(process.stderr.fileno(), 4096)
                assert piece, said
                said += piece
            os.write(keyboard, password.encode() + b"\n")
        out, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(keyboard)
    return subprocess.CompletedProcess([], process.returncode, out, said + rest)


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal is a thing of Unix")
def test_the_password_is_asked_for_twice_on_a_terminal(holder: Learner) -> None:
    holder.settings(iis={"password_file": None})
    run = type_passwords(holder, "typed by hand", "typed by hand")
    assert run.returncode == 0, run.stderr
    assert pkcs12.load_pkcs12(packed(holder), b"typed by hand").key is not None
    assert b"typed by hand" not in run.stdout + run.stderr


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal is a thing of Unix")
def test_two_passwords_that_differ_make_no_pfx(holder: Learner) -> None:
    holder.settings(iis={"password_file": None})
    run = type_passwords(holder, "typed by hand", "typed by hamd")
    assert run.returncode == 2
    assert b"differ" in run.stderr
    assert not (holder.state / "certificate.pfx").exists()


def test_10_takes_no_password_as_argument(holder: Learner) -> None:
    for argument in ("--password", "--password=secret", "secret"):
        assert "usage:" in holder.run("10", argument, code=2).err


def test_the_powershell_names_thumbprint_file_and_every_host(holder: Learner) -> None:
    run = holder.run("10")
    leaf = holder.chain()[0]
    thumbprint = leaf.fingerprint(hashes.SHA1()).hex().upper()
    assert f"AddSslCertificate('{thumbprint}', 'My')" in run.out
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = next(line for line in run.out.splitlines() if line.startswith("foreach"))
    assert set(re.findall("'([^']*)'", hosts)) == set(names.get_values_for_type(x509.DNSName))
    assert "Import-PfxCertificate" in run.out
    assert "Read-Host -AsSecureString" in run.out
    assert "certificate.pfx" in run.out


def test_10_prints_no_password_and_writes_nothing_but_the_pfx(holder: Learner) -> None:
    def contents() -> dict[Path, bytes]:
        files = [path for path in holder.folder.rglob("*") if path.is_file() and path.name != "trace.jsonl"]
        return {path: path.read_bytes() for path in files}

    before = contents()
    run = holder.run("10")
    after = contents()
    assert PASSWORD not in run.all + (holder.state / "trace.jsonl").read_text()
    assert set(after) - set(before) == {holder.state / "certificate.pfx"}
    assert {path: after[path] for path in before} == before


def test_10_makes_no_pfx_of_a_key_and_a_certificate_that_do_not_match(holder: Learner) -> None:
    (holder.state / "certificate.key").unlink()
    shutil.copy(holder.state / "account.key", holder.state / "certificate.key")
    assert "is not the key of" in holder.run("10", code=2).err
    assert not (holder.state / "certificate.pfx").exists()


def test_an_unknown_windows_version_is_refused_with_the_known_ones(holder: Learner) -> None:
    holder.settings(iis={"windows": "95"})
    run = holder.run("10", code=2)
    assert f"{holder.ini}: [iis] windows" in run.err
    assert "2012, 2016, 2019, 2022, 2025" in run.err

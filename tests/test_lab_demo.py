"""`python3 lab demo`: the whole series as a person sees it, and that its checks see what is wrong."""

import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.error
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab import Lab, bootstrap, demo, look, pki

ROOT = Path(__file__).resolve().parent.parent


def run_demo(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "lab"), "demo", *options], capture_output=True, text=True, timeout=300
    )


def test_every_step_holds_and_the_exit_code_is_0() -> None:
    result = run_demo()

    assert result.returncode == 0, result.stdout + result.stderr
    table = result.stdout.split("checked from outside")[1]
    scripts = re.findall(r"^ok +(\d\d)_\w+\.py +\d+\.\d\d ", table, re.MULTILINE)
    assert scripts == [f"{number:02}" for number in range(1, 14)]
    assert "FAILED" not in result.stdout
    # The narration of the scripts is shown live, indented.
    assert re.search(r"^    .*newAccount", result.stdout, re.MULTILINE)


def test_other_names_and_a_quiet_run_and_a_kept_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    result = run_demo("--quiet", "--keep", "--domains", "*.zone07.test, www.partner.test")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "newAccount" not in result.stdout
    assert "www.zone07.test" in result.stdout
    folder = Path(re.search(r"^kept: (.+)$", result.stdout, re.MULTILINE)[1])
    assert (folder / "state" / "certificate.pfx").exists()


def test_nothing_is_left_of_a_demo_that_does_not_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fake_scripts(tmp_path / "root", monkeypatch, "print('nothing')")

    demo.run(Namespace(domains=None, keep=False, quiet=True))

    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, str(ROOT / "lab"), "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert any("RFC 8555" in line for line in running.stdout)
        running.send_signal(number)
        output = running.stdout.read()

    assert running.returncode == 1
    assert output.endswith("lab: interrupted\n")
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def fake_scripts(root: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """A series that has only script 01, of which this is the text."""
    root.mkdir(exist_ok=True)
    (root / "01_fake.py").write_text(first)
    pebble = bootstrap.find_pebble()
    monkeypatch.setattr(bootstrap, "find_pebble", lambda: pebble)
    # The signals of this process are pytest's.
    monkeypatch.setattr(demo, "end_on_signals", lambda: None)
    monkeypatch.setattr(bootstrap, "ROOT", root)


def run_fake(capsys: pytest.CaptureFixture[str], quiet: bool = True) -> str:
    assert demo.run(Namespace(domains=None, keep=False, quiet=quiet)) == 1
    return capsys.readouterr().out


def test_a_script_that_fails_ends_the_demo_with_its_last_words_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_scripts(tmp_path, monkeypatch, "import sys; print('the moon is down'); sys.exit(7)")

    said = run_fake(capsys)

    assert "the moon is down" in said
    assert re.search(r"^FAILED +01_fake\.py .*exit code 7", said, re.MULTILINE)
    assert "02_" not in said


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("pass", "account.key"),
        (
            "import os; os.makedirs('state', 0o700); open('state/account.key', 'w').write('no key');"
            "os.chmod('state/account.key', 0o600)",
            "ValueError",
        ),
        (
            "import os; os.makedirs('state', 0o700); open('state/account.key', 'w');"
            "os.chmod('state/account.key', 0o644)",
            "0644",
        ),
    ],
    ids=["no file", "no key", "readable by others"],
)
def test_a_script_that_says_all_is_well_is_not_believed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    found: str,
) -> None:
    fake_scripts(tmp_path, monkeypatch, script)

    assert re.search(rf"^FAILED +01_fake\.py .*{found}", run_fake(capsys), re.MULTILINE)


def test_a_script_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SCRIPT_TIMEOUT", 0.5)
    fake_scripts(tmp_path, monkeypatch, "import time; print('waiting', flush=True); time.sleep(120)")

    assert "FAILED" in run_fake(capsys)


def test_a_script_sees_the_lab_and_nothing_that_leads_away_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HTTPS_PROXY", "http_proxy", "ALIYUN_ACCESS_KEY_ID", "ALIBABA_CLOUD_PROFILE", "ACME_CONFIG"):
        monkeypatch.setenv(name, "elsewhere")
    fake_scripts(
        tmp_path,
        monkeypatch,
        "import os; print(sorted(k for k, v in os.environ.items() if v == 'elsewhere' or 'ALIBABA' in k))",
    )

    said = run_fake(capsys, quiet=False)

    assert "['ALIBABA_CLOUD_ACCESS_KEY_ID', 'ALIBABA_CLOUD_ACCESS_KEY_SECRET']" in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[demo.Demo]:
    """A demo whose first ten scripts have run, for the checks to look at; nothing is renewed or ended yet."""
    folder = tmp_path_factory.mktemp("demo")
    with Lab(folder / "lab") as lab, pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CHECKS", demo.CHECKS[:10])
        finished = demo.Demo(lab, folder, ["example.test", "*.example.test"], quiet=True)
        assert [row for row in finished.rows() if not row.held] == []
        yield finished


@pytest.fixture
def restored(finished: demo.Demo) -> Iterator[demo.Demo]:
    """The finished demo, whose state folder and zones are put back afterwards."""
    before = {path: path.read_bytes() for path in finished.state.rglob("*") if path.is_file()}
    yield finished
    for path in finished.state.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
        path.chmod(0o600)
    finished.records_before = finished.records()


def test_the_check_of_the_certificate_sees_that_it_is_revoked_and_that_it_is_another(
    restored: demo.Demo,
) -> None:
    with pytest.raises(demo.CheckFailedError, match="Revoked"):
        demo.check_certificate(restored)

    (restored.state / "certificate.pem").write_text(pki.self_signed("another")[0])
    with pytest.raises(demo.CheckFailedError, match="do not match"):
        demo.check_certificate(restored)


def test_the_check_of_the_chain_sees_a_missing_link(restored: demo.Demo) -> None:
    (restored.state / "fullchain.pem").write_bytes((restored.state / "certificate.pem").read_bytes())

    with pytest.raises(demo.CheckFailedError, match="does not end at the CA's root"):
        demo.check_certificate(restored)


def test_the_checks_of_the_edges_see_another_certificate(restored: demo.Demo) -> None:
    (restored.state / "certificate.pem").write_text(pki.self_signed("another")[0])

    for check in (demo.check_cdn, demo.check_apigateway):
        with pytest.raises(demo.CheckFailedError, match="serves another certificate"):
            check(restored)


def test_the_check_of_the_edges_verifies_the_chain(restored: demo.Demo) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        look.served_certificate(restored.lab.cdn_edge, "other.example.org", restored.lab.issuer_roots())


def test_the_check_of_the_request_sees_other_names_and_the_accounts_key(restored: demo.Demo) -> None:
    pending = restored.state / "pending"
    pending.mkdir(mode=0o700, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = x509.SubjectAlternativeName([x509.DNSName("example.test"), x509.DNSName("more.example.test")])
    request = request.add_extension(names, critical=False).sign(key, hashes.SHA256())
    for path, content in ((pending / "certificate.key", key), (restored.state / "account.key", key)):
        pki.write_private(path, pki._key_pem(content))
    pki.write_private(pending / "certificate.csr", request.public_bytes(serialization.Encoding.PEM))

    with pytest.raises(demo.CheckFailedError, match="is the account's"):
        demo.check_certificate_request(restored)

    pki.write_private(restored.state / "account.key", pki._key_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(demo.CheckFailedError, match=r"more\.example\.test"):
        demo.check_certificate_request(restored)


def test_the_check_of_the_account_asks_the_ca(restored: demo.Demo) -> None:
    pki.write_private(restored.state / "account.key", pki._key_pem(ec.generate_private_key(ec.SECP256R1())))

    with pytest.raises(urllib.error.HTTPError, match="400"):
        demo.check_account(restored)


def test_the_checks_of_renewal_key_change_and_end_see_that_there_was_none(restored: demo.Demo) -> None:
    with pytest.raises(demo.CheckFailedError, match="Revoked"):
        demo.check_renewed(restored)
    with pytest.raises(demo.CheckFailedError, match="the old key is not kept"):
        demo.check_changed_key(restored)
    with pytest.raises(demo.CheckFailedError, match="the account is valid"):
        demo.check_deactivated(restored)


def test_the_check_of_the_key_change_asks_the_ca_about_the_old_key(restored: demo.Demo) -> None:
    account_key = (restored.state / "account.key").read_bytes()
    pki.write_private(restored.state / "history" / "account-old.key", account_key)

    with pytest.raises(demo.CheckFailedError, match="still knows the old key"):
        demo.check_changed_key(restored)


def test_the_check_of_the_zones_sees_a_record_left_and_one_lost(restored: demo.Demo) -> None:
    dns = restored.lab.cloud.dns
    dns.add_record("example.test", rr="_acme-challenge", type="TXT", value="left behind")

    with pytest.raises(demo.CheckFailedError, match="left behind"):
        demo.check_authorizations(restored)


def test_the_check_of_the_pfx_sees_a_wrong_password_and_open_rights(restored: demo.Demo) -> None:
    password, restored.pfx_password = restored.pfx_password, "wrong"
    with pytest.raises(demo.CheckFailedError, match="does not open"):
        demo.check_pfx(restored)
    restored.pfx_password = password

    (restored.state / "certificate.pfx").chmod(0o644)
    with pytest.raises(demo.CheckFailedError, match="0644"):
        demo.check_pfx(restored)


def test_the_last_check_sees_a_key_that_others_can_read_and_a_secret_in_what_was_printed(
    restored: demo.Demo,
) -> None:
    restored.output.append(restored.lab.access_key.access_key_secret)
    with pytest.raises(demo.CheckFailedError, match="SECRET was printed"):
        demo.check_secrets(restored)
    restored.output.pop()

    (restored.state / "certificate.key").chmod(0o640)
    with pytest.raises(demo.CheckFailedError, match="0640"):
        demo.check_secrets(restored)

"""common/config.py: acme.ini, and what is said about what cannot be in it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common import config
from common.failure import Usage


def load(tmp_path: Path, text: str) -> config.Settings:
    file = tmp_path / "acme.ini"
    file.write_text(text, encoding="utf-8")
    return config.load(file)


def test_an_empty_file_gives_the_defaults(tmp_path: Path):
    settings = load(tmp_path, "")
    assert settings.acme.directory == "https://acme-staging-v02.api.letsencrypt.org/directory"
    assert settings.acme.agree_to_terms_of_service is False
    assert settings.account.key_type == "ec256"
    assert settings.certificate.key_type == "rsa2048"
    assert settings.files.directory == tmp_path / "state"


def test_every_setting_of_the_example_file_exists_and_can_be_loaded(tmp_path: Path):
    example = (ROOT / "acme.example.ini").read_text()
    # A line "# key = value" in it shows a setting; take the mark away and it must load.
    shown = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line and line[2].islower() else line
        for line in example.splitlines()
    )
    settings = load(tmp_path, shown)
    for section in ("acme", "account", "certificate", "dns", "alibaba", "cdn", "apigateway", "iis", "files"):
        for key in vars(getattr(settings, section)):
            assert f"{key} = " in shown.partition(f"[{section}]")[2].partition("\n[")[0], f"{section}.{key}"


def test_paths_are_relative_to_the_settings_file(tmp_path: Path):
    settings = load(tmp_path, "[acme]\nca_bundle = roots/ca.pem\n[files]\ndirectory = here")
    assert settings.acme.ca_bundle == tmp_path / "roots" / "ca.pem"
    assert settings.files.directory == tmp_path / "here"


def test_domains_are_a_list_by_commas_or_lines_each_once_in_order(tmp_path: Path):
    settings = load(
        tmp_path, "[certificate]\ndomains = b.example.com, a.example.com,\n  B.example.com\n  bücher.example"
    )
    assert settings.certificate.domains == ("b.example.com", "a.example.com", "xn--bcher-kva.example")


def test_a_cdn_wildcard_keeps_its_leading_dot(tmp_path: Path):
    assert load(tmp_path, "[cdn]\ndomains = .example.com, www.example.com").cdn.domains == (
        ".example.com",
        "www.example.com",
    )


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("127.0.0.1:5301", ("127.0.0.1", 5301)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_name_servers_are_addresses_with_or_without_port(tmp_path: Path, text: str, server: tuple[str, int]):
    assert load(tmp_path, f"[dns]\nnameservers = {text}").dns.nameservers == (server,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[acme]\ndirectry = https://ca.example", ["[acme]", "directry", "no such setting", "directory"]),
        ("[amce]\n", ["[amce]", "the sections are"]),
        ("[acme]\ndirectory = http://ca.example/dir", ["[acme] directory", "not an https:// address"]),
        ("[acme]\ndirectory = https://user@ca.example/dir", ["[acme] directory", "not an https:// address"]),
        ("[acme]\ndirectory =\n", ["[acme] directory", "has no value"]),
        ("[acme]\nagree_to_terms_of_service = maybe", ["agree_to_terms_of_service", "yes, no"]),
        ("[acme]\ncontact = admin@example.com", ["[acme] contact", "mailto:admin@example.com"]),
        ("[account]\nkey_type = rsa1024", ["[account] key_type", "rsa1024", "ec256"]),
        ("[certificate]\ndomains = exa mple.com", ["[certificate] domains", "exa mple.com"]),
        ("[certificate]\ndomains = 192.0.2.1", ["[certificate] domains", "IP address"]),
        ("[dns]\nprovider = route53", ["[dns] provider", "route53", "alidns, manual"]),
        ("[dns]\ntimeout = soon", ["[dns] timeout", "number of seconds"]),
        ("[dns]\ntimeout = 0", ["[dns] timeout", "number of seconds"]),
        ("[dns]\nnameservers = 127.0.0.1:99999", ["[dns] nameservers", "host:port"]),
        ("[alibaba]\ncdn_endpoint = http://cdn.aliyuncs.com", ["[alibaba] cdn_endpoint", "always HTTPS"]),
        ("[alibaba]\nregion = cn/hangzhou", ["[alibaba] region", "region id"]),
        (
            "[alibaba]\naccess_key_secret = x",
            ["[alibaba] access_key_secret", "must not stand in this file", "ALIBABA_CLOUD_ACCESS_KEY_ID"],
        ),
        ("[cdn]\nverify_at = 127.0.0.1", ["[cdn] verify_at", "host:port"]),
        ("[iis]\nwindows = xp", ["[iis] windows", "2025"]),
        ("no section = here", ["acme.ini", "[section]"]),
        ("[acme]\ndirectory = https://a.example\ndirectory = https://b.example", ["acme.ini", "directory"]),
    ],
)
def test_what_cannot_be_is_one_clear_line(tmp_path: Path, text: str, words: list[str]):
    with pytest.raises(Usage) as refusal:
        load(tmp_path, text)
    assert refusal.value.exit_code == 2
    assert "\n" not in refusal.value.what
    assert refusal.value.remedy
    said = f"{refusal.value.what} {refusal.value.remedy}"
    assert all(word in said for word in ["acme.ini", *words]), said


def test_a_missing_setting_is_named_with_file_and_section(tmp_path: Path):
    with pytest.raises(Usage, match=r"acme\.ini: \[cdn\] domains is missing"):
        load(tmp_path, "").need("cdn", "domains")


def test_a_file_that_is_not_there_or_not_text_is_said(tmp_path: Path):
    with pytest.raises(Usage, match="No such file"):
        config.load(tmp_path / "acme.ini")
    (tmp_path / "acme.ini").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Usage, match="UTF-8"):
        config.load(tmp_path / "acme.ini")


@given(text=st.text(max_size=300))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_settings_or_a_clear_refusal(tmp_path: Path, text: str):
    try:
        load(tmp_path, text)
    except Usage as refusal:
        assert "acme.ini" in refusal.what


def test_the_settings_file_is_the_named_one_then_the_environments_then_acme_ini_then_lab_ini(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACME_CONFIG", raising=False)
    with pytest.raises(Usage, match="no acme.ini here"):
        config._default_file()
    (tmp_path / "lab.ini").touch()
    assert config._default_file() == Path("lab.ini")
    (tmp_path / "acme.ini").touch()
    assert config._default_file() == Path("acme.ini")
    monkeypatch.setenv("ACME_CONFIG", "elsewhere.ini")
    assert config._default_file() == Path("elsewhere.ini")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_python_ends_has_it_print_no_traceback(name: str, tmp_path: Path):
    (tmp_path / "acme.ini").write_text("[certificate]\ndomains = example.test\n")
    code = (
        "import atexit, os, signal\n"
        "from common import config\n"
        f"atexit.register(os.kill, os.getpid(), signal.{name})\n"
        "config.run(lambda settings: print('done', flush=True), 'A script.')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**clean_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "done\n"
    assert "Traceback" not in run.stderr
    assert run.returncode == -getattr(signal, name)


def test_what_is_nested_too_deeply_is_told_in_words(capsys: pytest.CaptureFixture[str]):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SystemExit) as ended, config._errors_in_words():
        repr(deep)
    assert ended.value.code == 1
    assert "error: an answer or a file is nested too deeply" in capsys.readouterr().err

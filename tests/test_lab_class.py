"""The Lab class: the world it begins with, its settings, labs side by side, and that nothing is left behind."""

import configparser
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rdatatype
import pytest

from common import config
from lab import Lab, LabError, bootstrap, world
from lab import lab as lab_module
from lab.lab import Ports


@pytest.fixture(scope="module")
def own_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def ask(server: str, name: str, rdtype: str) -> list[str]:
    host, port = server.split(":")
    answer = dns.query.udp(dns.message.make_query(name, rdtype), host, port=int(port), timeout=10)
    return sorted(rdata.to_text() for rrset in answer.answer for rdata in rrset)


def is_open(address: str) -> bool:
    host, port = address.removeprefix("https://").split("/")[0].split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def addresses(lab: Lab) -> list[str]:
    return [
        lab.directory_url,
        lab.management_url,
        *lab.nameservers,
        lab.alibaba_endpoint,
        lab.cdn_edge,
        lab.apigateway_edge,
    ]


def test_the_world_has_what_the_scripts_will_meet(own_lab: Lab) -> None:
    for server in own_lab.nameservers:
        assert ask(server, "_acme-challenge.example.test", "TXT") == ['"left-here-by-another-program"']
        assert ask(server, "example.test", "MX") == ["10 mail.example.test."]
        assert ask(server, "example.test", "A") == ["127.0.0.1"]
        assert ask(server, "dev.example.test", "SOA")
        assert ask(server, "shop.workshop.com.test", "A") == ["127.0.0.1"]
        assert not ask(server, "com.test", "SOA")
        assert ask(server, "_acme-challenge.www.partner.test", "CNAME") == [
            "partner.validation.example.test."
        ]
    assert len(own_lab.cloud.dns.zone_names()) > 40


def test_the_emulator_and_the_ca_are_verified_with_one_tls_root(own_lab: Lab) -> None:
    context = ssl.create_default_context(cafile=str(own_lab.ca_bundle))
    for address in (own_lab.alibaba_endpoint, own_lab.directory_url.split("/")[2]):
        host, port = address.split(":")
        for name in (host, "localhost"):
            with (
                socket.create_connection((host, int(port)), timeout=10) as connection,
                context.wrap_socket(connection, server_hostname=name) as tls,
            ):
                assert tls.version() in ("TLSv1.2", "TLSv1.3")


def test_the_settings_are_complete_for_the_scripts(own_lab: Lab, tmp_path: Path) -> None:
    own_lab.write_settings(tmp_path / "acme.ini", iis={"windows": "2016"})

    settings = config.load(tmp_path / "acme.ini")

    assert settings.acme.directory == own_lab.directory_url
    assert settings.acme.agree_to_terms_of_service
    assert settings.acme.ca_bundle == own_lab.ca_bundle
    assert settings.certificate.domains == world.CERTIFICATE_DOMAINS
    assert [f"{host}:{port}" for host, port in settings.dns.nameservers] == list(own_lab.nameservers)
    assert settings.alibaba.alidns_endpoint == own_lab.alibaba_endpoint
    assert settings.alibaba.ca_bundle == own_lab.ca_bundle
    assert settings.cdn.domains == world.CDN_DOMAINS
    assert settings.apigateway.group_id == own_lab.group_id
    assert settings.iis.windows == "2016"
    assert settings.files.directory == tmp_path / "state"


def test_settings_can_be_changed_and_taken_out(own_lab: Lab, tmp_path: Path) -> None:
    own_lab.write_settings(
        tmp_path / "acme.ini",
        domains=["www.example.test"],
        state="elsewhere",
        certificate={"key_type": "ec384"},
        cdn={"domains": None},
    )

    parser = configparser.ConfigParser(interpolation=None)
    parser.read(tmp_path / "acme.ini")

    assert dict(parser["certificate"]) == {"domains": "www.example.test", "key_type": "ec384"}
    assert "domains" not in parser["cdn"]
    assert parser["files"]["directory"] == "elsewhere"


def test_no_settings_file_holds_the_access_key_secret_and_the_environment_holds_nothing_else(
    own_lab: Lab, tmp_path: Path
) -> None:
    own_lab.write_settings(tmp_path / "acme.ini")

    assert own_lab.environment() == {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": own_lab.access_key.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": own_lab.access_key.access_key_secret,
    }
    assert own_lab.access_key.access_key_secret not in (tmp_path / "acme.ini").read_text()


def test_labs_side_by_side_have_ports_and_zones_of_their_own(own_lab: Lab) -> None:
    with Lab() as other:
        assert not set(addresses(own_lab)) & set(addresses(other))
        other.cloud.dns.add_record("example.test", rr="only-here", type="TXT", value="x")
        assert ask(other.nameservers[0], "only-here.example.test", "TXT")
        assert not ask(own_lab.nameservers[0], "only-here.example.test", "TXT")
        assert other.issuer_roots() != own_lab.issuer_roots()


def test_a_stopped_lab_leaves_no_port_thread_or_temporary_folder() -> None:
    threads = set(threading.enumerate())
    with Lab() as lab:
        opened = addresses(lab)
        assert all(is_open(address) for address in opened)

    assert not [address for address in opened if is_open(address)]
    assert not [t for t in set(threading.enumerate()) - threads if t.is_alive()]
    assert not lab.directory.exists()
    lab.stop()


def test_a_start_that_fails_leaves_nothing_and_names_the_port() -> None:
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        lab = Lab(ports=Ports(apigateway=taken))
        with pytest.raises(LabError, match=rf"port {taken} \(API Gateway edge\) is in use"):
            lab.start()

    assert lab.pebble.pid is None
    assert not is_open(lab.nameservers[0])
    assert not [t for t in set(threading.enumerate()) - threads if t.is_alive()]


def test_a_lost_race_for_an_automatic_port_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports = lab_module._free_ports
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        offers = iter([[taken, *free_ports(1)], [*free_ports(1), taken]])
        monkeypatch.setattr(lab_module, "_free_ports", lambda count: next(offers, None) or free_ports(count))

        with Lab() as lab:
            assert b"newNonce" in lab.pebble.get(lab.directory_url)
            assert str(taken) not in lab.directory_url + lab.management_url


def test_a_taken_port_that_was_asked_for_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(LabError, match=f"port {taken} "):
            Lab(ports=Ports(ca=taken)).start()


def test_the_ca_asks_the_name_server_that_lags_most() -> None:
    for lags, slowest in (((0.0, 9.0), 1), ((9.0, 0.0), 0)):
        with Lab(lags=lags) as lab:
            arguments = Path(f"/proc/{lab.pebble.pid}/cmdline").read_bytes().split(b"\0")
            assert lab.nameservers[slowest].encode() in arguments


def test_without_pebble_the_lab_does_not_start_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PEBBLE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bootstrap, "PRIVATE", tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)

    with pytest.raises(LabError, match="go install") as error:
        Lab().start()

    assert error.value.exit_code == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")
def test_the_labs_own_folder_is_private(tmp_path: Path) -> None:
    with Lab(tmp_path / "new") as lab:
        assert lab.directory.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "pebble.log").exists()

"""The live page's server, asked without a browser: what it tells, to whom, and what it never does."""

import base64
import contextlib
import http.client
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import pytest
from conftest import PASSWORD, Learner

from lab import Lab, LabError
from lab.page.server import PageServer
from lab.page.watch import Watch

Event = tuple[str, str, Any]  # id, name, data


class Page:
    """A live page's server, the learner whose trace it follows, and a client that plays the browser."""

    def __init__(self, learner: Learner, watch: Watch, server: PageServer) -> None:
        self.learner, self.lab, self.watch = learner, learner.lab, watch
        self.host = server.url.split("/")[2]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
        """Status, body and headers; keywords are headers, with "_" for "-"; Host is right unless it is given."""
        connection = http.client.HTTPConnection(self.host, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            for name, value in ({"Host": self.host} | headers).items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers

    def token(self) -> str:
        return self.ask("GET", "/")[1].partition('<meta name="token" content="')[2].partition('"')[0]

    def switch(self, wanted: Any, **headers: str) -> tuple[int, str, Any]:
        """What the page itself sends to switch a fault, with these headers in place of its own."""
        own = {"Origin": f"http://{self.host}", "Content_Type": "application/json", "X_Token": self.token()}
        sent = {name: value for name, value in (own | headers).items() if value}
        return self.ask("POST", "/faults", json.dumps(wanted).encode(), **sent)

    def events(self, last: str = "") -> Iterator[Event]:
        """The events as they come; a failure when nobody has left after 30 s."""
        deadline = time.monotonic() + 30
        connection = http.client.HTTPConnection(self.host, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/events", headers={"Last-Event-ID": last} if last else {})
            number = name = data = ""
            for line in connection.getresponse():
                assert time.monotonic() < deadline, "what is waited for does not come"
                field, _, value = line.decode().rstrip("\n").partition(": ")
                number, name, data = (
                    (value if field == wanted else known)
                    for wanted, known in (("id", number), ("event", name), ("data", data))
                )
                if not field and data:
                    yield number, name, json.loads(data)
                    number = name = data = ""

    def records_until(self, enough: Callable[[list[Any]], bool], last: str = "") -> tuple[list[Any], str]:
        """The records up to what is wanted, and the id of the last event."""
        records: list[Any] = []
        for number, name, data in self.events(last):
            records += data if name == "records" else []
            if name == "records" and enough(records):
                return records, number
        raise AssertionError("the events ended")

    def world_when(self, fits: Callable[[Any], bool]) -> Any:
        for _, name, data in self.events():
            if name == "world" and fits(data):
                return data
        raise AssertionError("the events ended")


@pytest.fixture(scope="module")
def own_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def page(own_lab: Lab, tmp_path: Path) -> Iterator[Page]:
    learner = Learner(tmp_path / "learner", own_lab)
    with Watch(own_lab, learner.ini) as watch, PageServer(watch) as server:
        yield Page(learner, watch, server)
    own_lab.faults.off()


def trace(learner: Learner) -> list[Any]:
    return [json.loads(line) for line in (learner.state / "trace.jsonl").read_text().splitlines()]


def has(kind: str, **members: str) -> Callable[[list[Any]], bool]:
    wanted = {"kind": kind, **members}
    return lambda records: any(wanted.items() <= record.items() for record in records)


def write(learner: Learner, text: str) -> None:
    learner.state.mkdir(exist_ok=True)
    with open(learner.state / "trace.jsonl", "a") as file:
        file.write(text)


# What it tells.


def test_every_record_of_the_scripts_comes_and_the_cas_questions_where_they_were_asked(page: Page):
    page.learner.series("01", "02", "03", "04", "05")
    traced = trace(page.learner)

    def by_scripts(records: list[Any]) -> list[Any]:
        return [record for record in records if "script" in record]

    records, _ = page.records_until(lambda records: len(by_scripts(records)) == len(traced))
    assert sorted(by_scripts(records), key=json.dumps) == sorted(traced, key=json.dumps)
    of_ca = [record for record in records if record.get("by") == "CA"]
    assert {record["sent"]["name"] for record in of_ca if record["sent"]["type"] == "TXT"} == {
        "_acme-challenge.example.test"
    }
    assert any("TXT" in line for record in of_ca for line in record["received"]["answer"])
    ready = next(n for n, record in enumerate(records) if "ready" in str(record.get("status")))
    assert records.index(of_ca[0]) < ready


def test_a_question_by_dig_is_not_taken_for_the_cas(page: Page):
    port = int(page.lab.nameservers[0].partition(":")[2])
    query = dns.message.make_query("example.test", "MX", use_edns=0)
    query.use_edns(0, options=[dns.edns.GenericOption(dns.edns.COOKIE, b"8 octets")])
    dns.query.udp(query, "127.0.0.1", 5, port)
    records, _ = page.records_until(has("dns", by="You"))
    assert [record["sent"] for record in records] == [{"name": "example.test", "type": "MX"}]


def test_a_page_that_comes_back_gets_what_it_has_missed_and_no_more(page: Page):
    write(page.learner, '{"kind": "wrote", "file": "1"}\n')
    _, last = page.records_until(has("wrote", file="1"))
    write(page.learner, '{"kind": "wrote", "file": "2"}\n')
    records, _ = page.records_until(has("wrote", file="2"), last)
    assert [record["file"] for record in records] == ["2"]
    # One that knew another lab gets all.
    records, _ = page.records_until(has("wrote", file="2"), "0123456789abcdef-7")
    assert [record["file"] for record in records] == ["1", "2"]


def test_half_a_line_waits_for_its_other_half_and_a_new_trace_is_read_from_its_beginning(page: Page):
    write(page.learner, '{"kind": "wrote", "file": "1"}\n{"kind": "wro')
    page.records_until(has("wrote", file="1"))
    write(page.learner, 'te", "file": "2"}\nno JSON\n')
    page.records_until(has("wrote", file="2"))
    shutil.rmtree(page.learner.state)
    write(page.learner, '{"kind": "wrote", "file": "3"}\n')
    records, _ = page.records_until(has("wrote", file="3"))
    assert [record["file"] for record in records] == ["1", "2", "3"]


def test_the_trace_is_looked_for_where_the_settings_say_now(page: Page):
    page.learner.settings(files={"directory": "elsewhere"})
    page.learner.state = page.learner.folder / "elsewhere"
    write(page.learner, '{"kind": "wrote", "file": "1"}\n')
    page.records_until(has("wrote", file="1"))


def test_the_world_is_what_ca_zones_and_edges_are(page: Page):
    page.learner.series("01", "02", "03", "04", "05", "06")
    before = page.world_when(lambda world: world["certificates"])
    serial = page.learner.serial()
    assert [(c["serial"], c["status"]) for c in before["certificates"]] == [(serial, "valid")]
    locks = {edge["domain"]: edge["locked"] for edge in before["edges"]}
    assert locks == dict.fromkeys(
        ("www.example.test", "static.example.test", ".wild.example.test", "api.example.test"), False
    )
    (zone,) = (zone for zone in before["zones"] if zone["zone"] == "example.test")
    proofs = [(record["value"], record["gone"]) for record in zone["records"] if record["type"] == "TXT"]
    assert proofs[0] == ("left-here-by-another-program", False)
    assert [gone for _, gone in proofs[-2:]] == [True, True]

    page.learner.run("07")
    page.world_when(
        lambda world: (
            {
                "edge": "CDN",
                "domain": "www.example.test",
                "locked": True,
                "words": f"serial {serial}, verified",
            }
            in world["edges"]
        )
    )
    page.learner.run("09")
    revoked = page.world_when(lambda world: world["certificates"][0]["status"] == "revoked")
    (edge,) = (edge for edge in revoked["edges"] if edge["domain"] == "www.example.test")
    assert not edge["locked"] and "revoked" in edge["words"]


def test_an_edge_that_breaks_off_has_no_padlock_and_no_look_uses_a_counted_fault_up(page: Page):
    page.lab.faults.on("edge-down")
    world = page.world_when(lambda world: world["faults"] == ["edge-down"])
    assert all("no TLS handshake" in edge["words"] for edge in world["edges"])
    page.lab.faults.off()
    page.lab.faults.on("edge-down@cdn*1")
    page.world_when(lambda world: world["faults"] == ["edge-down@cdn*1"])
    write(page.learner, '{"kind": "wrote", "file": "1"}\n')
    page.records_until(has("wrote", file="1"))
    assert page.lab.faults.active() == ["edge-down@cdn*1"]


def test_faults_are_switched_on_and_off(page: Page):
    status, body, _ = page.switch({"on": "ca-slow=0.1@newOrder*3"})
    assert (status, json.loads(body)) == (200, {"active": ["ca-slow=0.1@newOrder*3"]})
    status, body, _ = page.switch({"off": "ca-slow"})
    assert (status, json.loads(body)) == (200, {"active": []})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"on": "no-such-fault"}, "there is no fault no-such-fault"),
        ({"on": "ca-slow@nowhere"}, "WHERE may be"),
        ({"off": "no-such-fault"}, "there is no fault"),
        ({"on": "ca-slow", "off": "ca-slow"}, "no request that the page makes"),
        ({"up": "ca-slow"}, "no request that the page makes"),
        (["on", "ca-slow"], "no request that the page makes"),
        ({}, "no request that the page makes"),
    ],
)
def test_what_is_no_fault_is_refused_in_words(wanted: Any, words: str, page: Page):
    status, body, _ = page.switch(wanted)
    assert status == 400 and words in json.loads(body)["error"]
    assert page.lab.faults.active() == []


def test_a_port_that_is_taken_is_named(page: Page):
    port = int(page.host.partition(":")[2])
    with pytest.raises(LabError, match=f"port {port} .*in use"), PageServer(page.watch, port):
        pass


# To whom.

FOREIGN = {
    "another host": {"Host": "rebound.example:80"},
    "the host without its port": {"Host": "127.0.0.1"},
    "an origin elsewhere": {"Origin": "https://elsewhere.example"},
    "an origin on another port": {"Origin": "http://127.0.0.1:1"},
    "no origin at all": {"Origin": "null"},
    "another site": {"Sec_Fetch_Site": "cross-site"},
    "another port of this site": {"Sec_Fetch_Site": "same-site"},
}


@pytest.mark.parametrize("path", ["/", "/page.js", "/events"])
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=[*FOREIGN])
def test_a_page_of_another_site_can_read_nothing(headers: dict[str, str], path: str, page: Page):
    status, body, _ = page.ask("GET", path, **headers)
    assert status == 403
    assert page.token() not in body


NOT_OUR_PAGE = {
    "no Origin": {"Origin": ""},
    "no token": {"X_Token": ""},
    "a wrong token": {"X_Token": "x" * 32},
    "a token that is no ASCII": {"X_Token": "\u00e9"},
    "the content type of a form": {"Content_Type": "text/plain"},
}


@pytest.mark.parametrize(
    "headers", [*FOREIGN.values(), *NOT_OUR_PAGE.values()], ids=[*FOREIGN, *NOT_OUR_PAGE]
)
def test_a_page_of_another_site_can_switch_nothing(headers: dict[str, str], page: Page):
    assert page.switch({"on": "ca-slow"}, **headers)[0] == 403
    assert page.lab.faults.active() == []


def test_a_person_at_this_machine_can_read_it_by_either_name(page: Page):
    port = page.host.partition(":")[2]
    assert page.ask("GET", "/", Host=f"localhost:{port}", Sec_Fetch_Site="none")[0] == 200
    assert page.ask("GET", "/", Sec_Fetch_Site="same-origin")[0] == 200


def test_it_listens_on_loopback_only(page: Page):
    port = int(page.host.partition(":")[2])
    sockets = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [address for address in sockets if address.endswith(f":{port:04X}")][0].startswith("0100007F:")


@pytest.mark.parametrize(
    "path", ["/../lab.ini", "/%2e%2e/server.py", "//etc/passwd", "/server.py", "/page.js?x", "/favicon.ico"]
)
def test_there_is_nothing_but_the_page(path: str, page: Page):
    assert page.ask("GET", path)[0] == 404


def test_long_requests_and_other_methods_are_refused(page: Page):
    assert page.switch({"on": "x" * 2000})[0] == 413
    assert page.ask("POST", "/faults", Transfer_Encoding="chunked")[0] == 413
    assert page.ask("DELETE", "/")[0] == 501


def test_the_browser_is_told_to_load_nothing_from_elsewhere_and_to_keep_nothing(page: Page):
    for path in ("/", "/page.css", "/page.js", "/nothing"):
        headers = page.ask("GET", path)[2]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        assert "Access-Control-Allow-Origin" not in headers


def test_no_secret_reaches_it(page: Page):
    page.learner.series("01", "02", "03", "04", "05", "06", "07", "08", "10", "12")
    events = []
    for event in page.events():
        events.append(event)
        names = [name for _, name, _ in events]
        if "world" in names and has("acme", script="12_change_account_key", step="keyChange")(
            [record for _, name, data in events if name == "records" for record in data]
        ):
            break
    told = json.dumps(events) + "".join(page.ask("GET", path)[1] for path in ("/", "/page.js", "/page.css"))
    key = page.lab.access_key
    secrets = [PASSWORD, key.access_key_secret, base64.b64encode(key.access_key_secret.encode()).decode()]
    keys = [*page.learner.state.rglob("*.key")]
    assert len(keys) >= 4
    for path in keys:
        secrets += path.read_text().splitlines()[1:-1]
    assert [secret for secret in secrets if secret in told] == []
    assert key.access_key_secret not in told and page.token() not in json.dumps(events)

"""No secret in any byte that the scripts print, write, send in a URL or show in the process list."""

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRIPTS, Learner, Run, clean_environment
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fork_server import ForkServer
from secret_search import Searcher, forms_of_key, forms_of_word, numbers

from common import jws
from lab import Lab
from lab.https_server import HttpsHandler

# First, that the searcher finds what it is to find.

PLANTED_KEYS = {"ec": ec.generate_private_key(ec.SECP384R1()), "rsa": rsa.generate_private_key(65537, 2048)}


@pytest.mark.parametrize("kind", PLANTED_KEYS)
@pytest.mark.parametrize("form", forms_of_key(PLANTED_KEYS["ec"]))
def test_the_searcher_finds_a_planted_key(kind: str, form: str) -> None:
    key = PLANTED_KEYS[kind]
    text = b"it was a dark and stormy night " + forms_of_key(key)[form] + b" and so on"
    assert Searcher(numbers(key)).find(text)


@pytest.mark.parametrize(
    "secret", ["swordfish-12", "a/b+c=d~e f&g%h", secrets.token_urlsafe(96), "pässwörd密码"]
)
def test_the_searcher_finds_a_planted_word(secret: str) -> None:
    searcher = Searcher({"word": secret.encode()})
    for form, text in forms_of_word(secret).items():
        assert searcher.find(b"..." + text + b"...") == {"word"}, form


def test_the_searcher_finds_nothing_in_what_is_public() -> None:
    for key in PLANTED_KEYS.values():
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        jwk = json.dumps(jws.jwk(key)).encode()
        assert Searcher(numbers(key)).find(public + jwk) == set()


# Then, that there is nothing.

KEY_FILES = (".key", ".pfx")


class Planter:
    """A learner with a secret of every kind, and all that is heard of them."""

    def __init__(self, lab: Lab, folder: Path, hmac_key: str, key_type: str) -> None:
        self.lab, self.hmac_key, self.password = lab, hmac_key, secrets.token_urlsafe(18)
        acme = {"eab_key_id": "customer-1", "eab_hmac_key_file": "eab.key"}
        self.learner = Learner(folder, lab, acme=acme, certificate={"key_type": key_type})
        (folder / "eab.key").write_text(hmac_key + "\n")
        (folder / "pfx-password.txt").write_text(self.password + "\n")
        self.access_key = lab.cloud.ram.add_sts_token()
        assert self.access_key.security_token
        self.learner.environment = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": self.access_key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": self.access_key.access_key_secret,
            "ALIBABA_CLOUD_SECURITY_TOKEN": self.access_key.security_token,
            # Makes the SDK talk.
            "DEBUG": "sdk",
        }
        self.said = b""
        self.keys: dict[bytes, str] = {}

    def heard(self, run: Run) -> Run:
        """Keep what was said, and every key there is by now."""
        self.said += run.all.encode()
        for path in self.learner.state.rglob("*.key"):
            self.keys.setdefault(path.read_bytes(), path.relative_to(self.learner.state).as_posix())
        return run

    def words(self) -> dict[str, str]:
        return {
            "access key secret": self.access_key.access_key_secret,
            "STS token": self.access_key.security_token or "",
            "PFX password": self.password,
            "EAB key": self.hmac_key,
        }

    def secrets(self) -> dict[str, bytes]:
        known = {name: word.encode() for name, word in self.words().items()}
        known["octets of the EAB key"] = jws.b64url_decode(self.hmac_key)
        for pem, name in self.keys.items():
            private = serialization.load_pem_private_key(pem, None)
            known |= {f"{number} of {name}": value for number, value in numbers(private).items()}
        return known

    def everything(self, requests: list[bytes]) -> dict[str, bytes]:
        """Where it was -> what is there for others to see."""
        files = [path for path in self.learner.state.rglob("*") if path.is_file()]
        public = {path.name: path.read_bytes() for path in files if path.suffix not in KEY_FILES}
        assert {"trace.jsonl", "account.json", "fullchain.pem"} <= public.keys()
        queries = "\n".join(call.query for call in self.lab.cloud.calls).encode()
        return {
            "standard output and error": self.said,
            "names of files": "\n".join(map(str, files)).encode(),
            "requests": b"\n".join(requests),
            "queries at the cloud": queries,
            **public,
        }


@contextmanager
def requests_heard(lab: Lab) -> Iterator[list[bytes]]:
    """The first lines of every request at the CA and at the cloud, with all headers; of the CA's the bodies too."""
    heard: list[bytes] = []
    parse, answer = HttpsHandler.parse_request, lab.ca.answer

    def parse_request(handler: HttpsHandler) -> bool:
        good = parse(handler)
        heard.append(handler.raw_requestline + bytes(handler.headers) if good else handler.raw_requestline)
        return good

    def answer_ca(request: Any) -> Any:
        heard.append(request.body)
        return answer(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpsHandler, "parse_request", parse_request)
        patch.setattr(lab.ca, "answer", answer_ca)
        yield heard


@contextmanager
def process_list() -> Iterator[list[bytes]]:
    """The command lines of all processes of this machine, again and again."""
    seen: set[bytes] = set()
    listed: list[bytes] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    pass  # ended in between

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    yield listed
    ended.set()
    looking.join()
    listed += seen


def check_that_the_search_can_see(planter: Planter, everything: dict[str, bytes]) -> None:
    """Plant each secret, in each form, into a copy of what was searched."""
    text = everything["standard output and error"][-3000:]
    known = planter.secrets()
    for name, word in planter.words().items():
        searcher = Searcher({name: known[name]})
        for form, leak in forms_of_word(word).items():
            assert searcher.find(text + leak + text) == {name}, form
    for pem, name in planter.keys.items():
        key = serialization.load_pem_private_key(pem, None)
        searcher = Searcher(numbers(key))
        for form, leak in forms_of_key(key).items():
            assert searcher.find(text + leak + text), f"{form} of {name}"


def check_nothing_leaked(planter: Planter, requests: list[bytes]) -> None:
    searcher, everything = Searcher(planter.secrets()), planter.everything(requests)
    # It sees these very secrets where they must be.
    in_files = {name for name in planter.secrets() if " of " in name and "EAB" not in name}
    assert searcher.find(b"".join(planter.keys)) == in_files
    for place, content in everything.items():
        assert searcher.find(content) == set(), place
    check_that_the_search_can_see(planter, everything)


@pytest.fixture
def planter(new_lab: Callable[..., Lab], tmp_path: Path) -> Callable[[str], Planter]:
    """Make a Planter whose certificate has a key of some type, in a lab of its own."""

    def make(key_type: str) -> Planter:
        hmac_key = jws.b64url(secrets.token_bytes(32))
        lab = new_lab(eab_keys={"customer-1": hmac_key}, eab_required=True)
        return Planter(lab, tmp_path / "learner", hmac_key, key_type)

    return make


def test_nothing_secret_in_any_byte_of_the_series_nor_in_the_process_list(
    planter: Callable[[str], Planter],
) -> None:
    person = planter("rsa2048")
    learner = person.learner
    with requests_heard(person.lab) as requests, process_list() as processes:
        # Every script; a second install, where API Gateway's answer holds the key; and what ends in an error.
        for number in [
            "01",
            "02",
            "03",
            "00",
            "04",
            "05",
            "06",
            "07",
            "08",
            "08",
            "07",
            "10",
            "09",
            "09",
            "12",
            "11",
        ]:
            person.heard(learner.run(number))
        for name in ("ACCESS_KEY_SECRET", "SECURITY_TOKEN"):
            wrong = learner.environment[f"ALIBABA_CLOUD_{name}"] + "x"
            person.heard(learner.run("08", code=1, **{f"ALIBABA_CLOUD_{name}": wrong}))
        person.heard(learner.run("13", "--yes"))
    # The account's two keys, and those of two certificates.
    assert len(person.keys) == 4
    assert any(SCRIPTS["05"].name.encode() in line for line in processes)
    check_nothing_leaked(person, [*requests, *processes])


# Script -> what goes wrong before it succeeds: what echoes, what breaks off, and what no program was made for.
ECHOES = "alibaba-signature alibaba-odd-signature alibaba-forbidden alibaba-number alibaba-not-utf8 alibaba-reset-after"
FAULTS = {
    "03": "ca-html@newAccount ca-429@newAccount ca-reset-after@newAccount ca-redirect@newAccount ca-no-location",
    "04": "ca-500@newOrder ca-truncated@newOrder ca-old-nonce",
    "05": f"{ECHOES} alibaba-clock ca-503-absurd@challenge dns-servfail ca-token ca-no-dns01",
    "06": "ca-pending@order ca-not-utf8@order ca-deep@order ca-no-pem ca-reset-within@certificate",
    "07": f"{ECHOES} alibaba-strange edge-down",
    "08": f"{ECHOES} alibaba-truncated edge-old",
    "10": "",
    "12": "ca-500@keyChange ca-reset-after@keyChange",
    "11": "ca-reset-before@newOrder alibaba-forbidden",
    "09": "ca-500@revokeCert ca-html@revokeCert",
    "13": "ca-503@account",
}
ARGUMENTS = {"11": ["--force"], "13": ["--yes"]}


def test_nothing_secret_in_any_byte_of_a_series_in_which_everything_goes_wrong_first(
    planter: Callable[[str], Planter],
) -> None:
    person = planter("ec256")
    learner, lab = person.learner, person.lab
    server = ForkServer(clean_environment())

    def run(number: str) -> Run:
        out, err = learner.folder / "out", learner.folder / "err"
        server.start(
            argv=[str(SCRIPTS[number]), "--config", str(learner.ini), *ARGUMENTS.get(number, [])],
            cwd=str(learner.folder),
            environment={**clean_environment(), **learner.environment},
            out=str(out),
            err=str(err),
            # Waiting takes no time.
            deadline=900.0,
        )
        ended = person.heard(Run(server.wait(), out.read_text(), err.read_text()))
        out.unlink()
        err.unlink()
        assert "Traceback" not in ended.all, ended.all
        return ended

    failed = 0
    try:
        with requests_heard(lab) as requests:
            for number in ("01", "02"):
                assert run(number).code == 0
            for number, faults in FAULTS.items():
                for fault in faults.split():
                    lab.faults.on(fault)
                    failed += run(number).code == 1
                    lab.faults.off()
                    assert lab.faults.struck[fault.partition("@")[0]], fault
                ended = run(number)
                assert ended.code == 0, f"{number}:\n{ended.all}"
    finally:
        server.stop()
    assert failed > 20
    check_nothing_leaked(person, requests)

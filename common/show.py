"""The narration: the one place where an exchange is printed and written to the trace, and secrets are taken out.

Everything goes to standard error, except result(): that is what a pipe gets. Whatever leaves through this module
passes clean() first, so a caller cannot forget to hide a secret, only to register it with secret().
The trace, one JSON object a line, is described in docs/trace.md.
"""

import base64
import contextlib
import functools
import importlib.util
import json
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.failure import Failure

HIDDEN = "(secret)"

# Members whose value is a secret wherever they stand: in a parameter, a JSON body, a URL, an error text.
# (A JWS's own "signature", in lower case, is not one; a cloud call's "Signature" signs a call that may be replayed.)
_SECRET_NAMES = (
    "SSLPri|CertificatePrivateKey|PrivateKey|AccessKeySecret|SecurityToken|Signature|StringToSign"
    "|Authorization|Password"
)
_SECRET_MEMBER = re.compile(_SECRET_NAMES)
_SECRET_PARAMETER = re.compile(rf"({_SECRET_NAMES})(%3D|=)[^&\s\"']+")
# A private key block, whole or cut off, plain or percent-encoded once or twice.
_MARK = r"[A-Z0-9 +%]*?PRIVATE(?: |\+|%20|%2520)KEY-----"
_PRIVATE_KEY = re.compile(rf"-----BEGIN{_MARK}.*?(?:-----END{_MARK}|\Z)", re.DOTALL)
# The surrogates at the end, which JSON can hold alone, cannot be written to any stream.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDTH = 100
_DEEPEST = 12  # levels of JSON that are shown
_MOST_ITEMS = 6
_LONGEST_SENTENCE = 500
_lock = threading.RLock()


class _Output:
    """What start() settled: which script speaks, whether it is quiet, where the trace goes."""

    script = ""
    step = ""
    source = ""
    quiet = False
    explaining = False
    explained: frozenset[str] = frozenset()
    results = True
    trace: Path | None = None
    secrets: tuple[str, ...] = ()


def start(script: str, quiet: bool = False, trace: Path | None = None, explaining: bool = False) -> None:
    """Begin the narration of one script, such as "03_new_account"."""
    _Output.script, _Output.quiet, _Output.trace = script, quiet, trace
    _Output.explaining, _Output.explained = explaining, frozenset()
    _Output.step = _Output.source = ""


def trace_to(path: Path | None) -> None:
    """Write the trace to this file from now on, or to none."""
    _Output.trace = path


@contextlib.contextmanager
def part(script: str) -> Iterator[None]:
    """Narrate as another script that is a part of this one: its result is only a step, and so is narration."""
    before = _Output.script
    _Output.script, _Output.results = script, False
    _Output.step = _Output.source = ""
    try:
        yield
    finally:
        _Output.script, _Output.results = before, True
        _Output.step = _Output.source = ""


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Say nothing of the exchanges inside, for a script that asks many and tells what comes of them."""
    before = _Output.quiet
    _Output.quiet = True
    try:
        yield
    finally:
        _Output.quiet = before


def secret(value: str) -> str:
    """Register a secret, so that it is never printed or traced in any common encoding; returns it."""
    raw = value.encode()
    forms = {value, quote(value, safe=""), quote(value), raw.hex(), json.dumps(value)[1:-1]}
    forms |= {encode(raw).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    with _lock:
        known = {*_Output.secrets, *(form for form in forms if len(form) >= 4)}
        # The longest first, so that no shorter form leaves the rest of a longer one standing.
        _Output.secrets = tuple(sorted(known, key=len, reverse=True))
    return value


def clean(text: str) -> str:
    """The text without private keys, registered secrets, the values of secret parameters, and control characters."""
    # A server's words must not steer the terminal that shows them.
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
    text = _PRIVATE_KEY.sub("(private key)", text)
    for value in _Output.secrets:
        text = text.replace(value, HIDDEN)
    return _SECRET_PARAMETER.sub(rf"\1\2{HIDDEN}", text)


def say(text: str, style: str = "") -> None:
    """A line of narration."""
    if not _Output.quiet:
        _write(text, style)


def step(title: str, source: str = "") -> None:
    """The heading of a call: its name, and where it is described."""
    _Output.step, _Output.source = title, source
    number = _Output.script[:2]
    say(f"\n{number}  {title:<55} {source}".rstrip(), "bold")
    # Without the domain, or the version, that it is about.
    explain(re.sub(r"^.*: | \d{4}$", "", title))


def explain(topic: str) -> None:
    """With --explain: what a teacher would say of a step or a call, the first time that a run comes to it."""
    if not _Output.explaining:
        return
    from common.explain import EXPLANATIONS

    with _lock:
        if topic in _Output.explained:
            return
        _Output.explained |= {topic}
    if topic in EXPLANATIONS:
        lines = textwrap.wrap(EXPLANATIONS[topic], 90)
        say("\n".join(f"    | {line}" for line in lines), "italic")


def exchange(
    method: str,
    url: str,
    sent: Mapping[str, Any],
    status: str,
    received: Mapping[str, Any],
    seconds: float,
    kind: str,
    brief: bool = False,
) -> None:
    """Print one request with its answer, as one block, and write it to the trace.

    sent, received: label -> text or JSON value, in the order to be printed
    status: "201 Created", or what went wrong when no answer came
    kind: "acme" or "alibaba", for readers of the trace
    brief: print one line only: the second authorization teaches nothing that the first did not
    """
    if brief:
        what = f"{url} {sent['action']}" if "action" in sent else url
        say(f"--> {method} {what} <-- {status}")
    else:
        say("\n".join([f"--> {method} {url}", *_fields(sent), f"<-- {status}", *_fields(received)]))
    trace(kind, seconds, method=method, url=url, sent=sent, status=status, received=received)


def facts(**values: Any) -> None:
    """What was found out, a line each: facts(names="example.com", status="valid")."""
    say("\n".join(_fields(values)))


def wrote(path: Path) -> None:
    say(f"wrote {_relative(path)}", "green")
    # The trace may be shown to others: where on this machine the state folder is, is not for them.
    folder = _Output.trace.parent if _Output.trace else path.parent
    inside = path.is_relative_to(folder)
    trace("wrote", file=path.relative_to(folder).as_posix() if inside else path.name)


def kept(path: Path, why: str) -> None:
    say(f"kept {_relative(path)}: {why}", "green")


def next_step(script: str) -> None:
    # Inside 11_renew.py the next one comes by itself.
    if not _Output.results:
        return
    say(f"next  {script}")


def warn(text: str) -> None:
    """Something the person should know although the script goes on; printed even when quiet."""
    _write(f"note: {text}", "yellow")


def ask(text: str) -> None:
    """What the person must do now for the script to go on; printed even when quiet."""
    _write(text, "bold")


def result(text: str | Path) -> None:
    """The script's result, on standard output: a path, a URL, a serial number."""
    if not _Output.results:
        say(f"result {text}")
        return
    with _lock:
        print(clean(str(text)), flush=True)


def failure(error: Failure) -> None:
    """Print an error: what was asked, what came back, what to do."""
    _write(f"error: {error.what}", "bold red")
    if error.remedy:
        _write(f"what to do: {error.remedy}", "yellow")
    trace("failure", what=error.what, remedy=error.remedy)


@contextlib.contextmanager
def waiting(timeout: float) -> Iterator["Waiting"]:
    """While something is waited for: what, and for how long, on one line that renews itself."""
    display = Waiting(timeout)
    try:
        yield display
    finally:
        display.close()


class Waiting:
    """One wait of at most `timeout` seconds. On a terminal a live line; in a pipe a line when the reason changes."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.started = time.monotonic()
        self.reason = ""
        self._status: Any = None

    def update(self, reason: str) -> None:
        line = clean(
            f"waiting for {reason}, {time.monotonic() - self.started:.0f} of at most {self.timeout:.0f} s"
        )
        if _Output.quiet:
            return
        if _can_colour() and not _console().is_dumb_terminal:
            from rich.text import Text  # not a str: rich would take "[…]" in it for its markup

            if self._status is None:
                self._status = _console().status(Text(line))
                self._status.start()
            self._status.update(Text(line))
        elif reason != self.reason:
            _write(line)
        self.reason = reason

    def close(self) -> None:
        if self._status:
            self._status.stop()


def _write(text: str, style: str = "") -> None:
    text = clean(text)
    with _lock:
        # rich knows terminals: colours, Windows, NO_COLOR. A pipe gets plain text, and no import of rich.
        if _can_colour():
            from rich.text import Text

            line = Text(text, style=style)
            if not style:
                line.highlight_regex(r"(?m)^(-->|<--).*$", "bold cyan")
                line.highlight_regex(r"(?m)^    [A-Za-z-]+ ", "dim")
            _console().print(line, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _can_colour() -> bool:
    # 00_check_setup.py says which packages are missing, and rich may be among them.
    return sys.stderr.isatty() and importlib.util.find_spec("rich") is not None


@functools.cache
def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _fields(values: Mapping[str, Any]) -> list[str]:
    lines = []
    for label, value in values.items():
        text = value if isinstance(value, str) else _json(value)
        first, *more = text.splitlines() or [""]
        lines.append(f"    {label:<12} {first}".rstrip())
        lines += [f"    {'':<12} {line}" for line in more]
    return lines


def _json(value: Any) -> str:
    """JSON for reading: what fits on a line stays on it; long strings shortened, with their length."""
    return _laid_out(_shortened(_without_secrets(value)), 0)


def _laid_out(value: Any, indent: int) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= _WIDTH or not value or not isinstance(value, dict | list):
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        items = [
            f"{inner}{json.dumps(key)}: {_laid_out(member, indent + 2)}" for key, member in value.items()
        ]
        return "{\n" + ",\n".join(items) + f"\n{' ' * indent}}}"
    items = [inner + _laid_out(item, indent + 2) for item in value]
    return "[\n" + ",\n".join(items) + f"\n{' ' * indent}]"


def shorten(text: str, limit: int = 72) -> str:
    """The beginning and the end of a long text, and its length."""
    if len(text) <= limit:
        return text
    head, tail = text[:24].partition("\n")[0], text[-8:].strip().rpartition("\n")[2]
    return f"{head}…{tail} ({len(text)} characters)"


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        # A URL is to be read and followed, and so is a sentence; anything else this long is base64 or PEM.
        sentence = len(value) <= _LONGEST_SENTENCE and " " in value[:40] and "-----BEGIN" not in value
        return value if value.startswith("https://") or sentence else shorten(value)
    if isinstance(value, Mapping):
        return {key: _shortened(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        shown = [
            _shortened(member) for member in value[: _MOST_ITEMS if len(value) > _MOST_ITEMS + 1 else None]
        ]
        return shown if len(shown) == len(value) else [*shown, f"… and {len(value) - len(shown)} more"]
    return value


def _without_secrets(value: Any, level: int = 0) -> Any:
    if level > _DEEPEST and isinstance(value, Mapping | list | tuple):
        return "… (deeper than anything a CA or a cloud has to say)"
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if _SECRET_MEMBER.fullmatch(str(key)) else _without_secrets(member, level + 1)
            for key, member in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(member, level + 1) for member in value]
    return clean(value) if isinstance(value, str) else value


def trace(kind: str, seconds: float = 0, **members: Any) -> None:
    """Write a line to the trace, printed or not: docs/trace.md has the kinds, and which members each has."""
    if not _Output.trace:
        return
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    whole = {
        "time": now,
        "run": os.getpid(),
        "script": _Output.script,
        "step": _Output.step,
        "source": _Output.source,
        "seconds": round(seconds, 4),
        "kind": kind,
        **members,
    }
    line = json.dumps(_without_secrets(whole))
    with _lock, contextlib.suppress(OSError):
        # The trace is a convenience: a full disk must not stop a script that could still clean up.
        _Output.trace.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(_Output.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(handle, "ab", buffering=0) as file:
            written = file.write(line.encode() + b"\n") or 0
            # Half a line, on a full disk, would spoil the next one too.
            if written <= len(line):
                file.truncate(file.tell() - written)


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""acme.ini, and the command line that all scripts share.

config.run(main, __doc__) is how a script starts. A setting is what the dataclasses below say: the section is the
class's, the key is the field's, the parser is in its metadata.
"""

import argparse
import configparser
import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import names, show
from common.failure import Failure, Usage, os_failure
from common.state import State

STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
KNOWN_CAS = {
    STAGING: "Let's Encrypt staging",
    "https://acme-v02.api.letsencrypt.org/directory": "Let's Encrypt",
    "https://acme.zerossl.com/v2/DV90": "ZeroSSL",
    "https://dv.acme-v02.api.pki.goog/directory": "Google Trust Services",
}
KEY_TYPES = ("ec256", "ec384", "rsa2048", "rsa3072", "rsa4096")
WINDOWS_VERSIONS = ("2012", "2016", "2019", "2022", "2025")


# What a value may be: each parser takes the text and raises ValueError with a sentence.


def _text(text: str) -> str:
    return text


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text

    return parse


def _yes_or_no(text: str) -> bool:
    return _one_of("yes", "no")(text.lower()) == "yes"


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text) or float(text) == 0:
        raise ValueError(f"{text!r} is not a number of seconds, such as 120")
    return float(text)


def _https_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ValueError(
            f"{text!r} is not an https:// address; RFC 8555 section 6.1 wants HTTPS, and so do we"
        )
    return text


def _host_and_port(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?([0-9A-Za-z.:-]+?)\]?:([0-9]{1,5})", text)
    if not match or not 0 < int(match[2]) < 65536:
        raise ValueError(f"{text!r} is not host:port")
    return match[1], int(match[2])


def _server(text: str) -> tuple[str, int]:
    """A name server: an address, with ":port" where it is not 53."""
    return _host_and_port(text if re.search(r"\]:[0-9]+$|^[^:]*:[0-9]+$", text) else f"[{text}]:53")


def _endpoint(text: str) -> str:
    """A cloud API's host, with ":port" where it is not 443. Never a scheme: the calls are HTTPS, always."""
    if not re.fullmatch(r"[0-9A-Za-z.-]+(:[0-9]{1,5})?", text):
        raise ValueError(f"{text!r} is not host or host:port (no https://, it is always HTTPS)")
    return text


def _region(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,40}", text):
        raise ValueError(f"{text!r} is not a region id, such as cn-hangzhou")
    return text


def _contact(text: str) -> tuple[str, ...]:
    parts = _list(_text)(text)
    for part in parts:
        if not re.fullmatch(r"mailto:[^@\s,?]+@[^@\s,?]+", part):
            raise ValueError(f"{part!r} is not a contact, such as mailto:admin@example.com")
    return parts


def _cdn_domain(text: str) -> str:
    # Alibaba's CDN writes a wildcard domain as ".example.com".
    return names.dns_name("*" + text)[1:] if text.startswith(".") else names.dns_name(text)


def _list(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_list(text: str) -> tuple[Any, ...]:
        items = [item.strip() for item in re.split(r"[,\n]", text)]
        # The order is the person's; a name written twice counts once.
        return tuple(dict.fromkeys(parse(item) for item in items if item))

    return parse_list


def _setting(parse: Callable[[str], Any], default: Any = None) -> Any:
    return field(default=default, metadata={"parse": parse})


def _path(text: str) -> Path:
    """A path relative to the settings file; load() makes it so."""
    if "\0" in text:
        raise ValueError("no path has a NUL character")
    return Path(text)


@dataclass(frozen=True)
class Acme:
    directory: str = _setting(_https_url, STAGING)
    agree_to_terms_of_service: bool = _setting(_yes_or_no, False)
    contact: tuple[str, ...] = _setting(_contact, ())
    ca_bundle: Path | None = _setting(_path)
    profile: str | None = _setting(_text)
    preferred_chain: str | None = _setting(_text)
    eab_key_id: str | None = _setting(_text)
    eab_hmac_key_file: Path | None = _setting(_path)


@dataclass(frozen=True)
class Account:
    key_type: str = _setting(_one_of(*KEY_TYPES), "ec256")


@dataclass(frozen=True)
class Certificate:
    domains: tuple[str, ...] = _setting(_list(names.dns_name), ())
    key_type: str = _setting(_one_of(*KEY_TYPES), "rsa2048")


@dataclass(frozen=True)
class Dns:
    provider: str = _setting(_one_of("alidns", "manual"), "alidns")
    nameservers: tuple[tuple[str, int], ...] = _setting(_list(_server), ())
    timeout: float | None = _setting(_seconds)


@dataclass(frozen=True)
class Alibaba:
    region: str = _setting(_region, "cn-hangzhou")
    profile: str | None = _setting(_text)
    credentials_file: Path | None = _setting(_path)
    alidns_endpoint: str | None = _setting(_endpoint)
    cdn_endpoint: str | None = _setting(_endpoint)
    apigateway_endpoint: str | None = _setting(_endpoint)
    sts_endpoint: str | None = _setting(_endpoint)
    ca_bundle: Path | None = _setting(_path)


@dataclass(frozen=True)
class Cdn:
    domains: tuple[str, ...] = _setting(_list(_cdn_domain), ())
    verify_at: tuple[str, int] | None = _setting(_host_and_port)


@dataclass(frozen=True)
class ApiGateway:
    group_id: str | None = _setting(_text)
    domains: tuple[str, ...] = _setting(_list(names.dns_name), ())
    verify_at: tuple[str, int] | None = _setting(_host_and_port)


@dataclass(frozen=True)
class Iis:
    windows: str = _setting(_one_of(*WINDOWS_VERSIONS), "2022")
    password_file: Path | None = _setting(_path)


@dataclass(frozen=True)
class Files:
    directory: Path = _setting(_path, Path("state"))


@dataclass(frozen=True)
class Settings:
    """Everything acme.ini says, with defaults where it is silent."""

    file: Path
    acme: Acme = Acme()
    account: Account = Account()
    certificate: Certificate = Certificate()
    dns: Dns = Dns()
    alibaba: Alibaba = Alibaba()
    cdn: Cdn = Cdn()
    apigateway: ApiGateway = ApiGateway()
    iis: Iis = Iis()
    files: Files = Files()

    @property
    def state(self) -> State:
        return State(self.files.directory)

    def need(self, section: str, key: str) -> Any:
        """A setting that this script cannot do without; Usage naming file, section and key when it is not there."""
        value = getattr(getattr(self, section), key)
        if not value:
            raise Usage(f"{self.file}: [{section}] {key} is missing", "acme.example.ini shows every setting")
        return value


def load(file: Path) -> Settings:
    """Read a settings file; Usage, naming file, section and key, for whatever in it cannot be."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(file.read_text(encoding="utf-8-sig"), source=str(file))
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}", "copy acme.example.ini to acme.ini and fill it in") from None
    except UnicodeDecodeError:
        raise Usage(f"{file}: is not UTF-8 text", "save it as UTF-8") from None
    except configparser.Error as error:
        raise Usage(
            f"{file}: {error.message.splitlines()[0]}", "write [section] lines and key = value lines"
        ) from None
    sections = {f.name: f.type for f in dataclasses.fields(Settings) if f.name != "file"}
    loaded = {}
    for section in parser.sections():
        if section not in sections:
            raise Usage(f"{file}: there is no section [{section}]", f"the sections are {', '.join(sections)}")
        loaded[section] = _load_section(file, section, sections[section], dict(parser[section]))
    relative_to_file = file.absolute().parent
    folder = loaded.get("files", Files()).directory
    loaded["files"] = Files(relative_to_file / folder)
    return Settings(file=file, **loaded)


def _load_section(file: Path, section: str, kind: Any, texts: dict[str, str]) -> Any:
    parsers = {f.name: f.metadata["parse"] for f in dataclasses.fields(kind)}
    values = {}
    for key, text in texts.items():
        where = f"{file}: [{section}] {key}"
        if key not in parsers and key.startswith("access_key"):
            raise Usage(
                f"{where}: an access key must not stand in this file",
                "set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or run: aliyun configure",
            )
        if key not in parsers:
            raise Usage(f"{where}: there is no such setting", f"[{section}] has {', '.join(parsers)}")
        if not text.strip():
            raise Usage(f"{where}: has no value", "give it one, or take the line out")
        try:
            values[key] = parsers[key](text.strip())
            if isinstance(values[key], Path):
                values[key] = file.absolute().parent / values[key].expanduser()
        except (ValueError, RuntimeError) as error:
            # RuntimeError: "~name" of somebody who has no home folder.
            raise Usage(f"{where}: {error}", f"correct it in {file}") from None
    return kind(**values)


AddOptions = Callable[[argparse.ArgumentParser], None]


def run(
    main: Callable[..., None],
    docstring: str | None,
    add_options: AddOptions | None = None,
    one_settings_file: bool = True,
    changes_nothing: bool = False,
) -> None:
    """Start a script: its command line, its settings, its main(); and end it with exit code 0, 1 or 2.

    main is called as main(settings, **options), with an option for each argument that add_options adds; where
    one_settings_file is False, as main(files, **options), and loads them itself. A script that changes nothing needs
    no lock on the state folder, and leaves no trace there.
    """
    options = vars(_parser(docstring, add_options).parse_args())
    file, quiet, explaining = (options.pop(name) for name in ("config", "quiet", "explain"))
    with _signals_unwind(), _errors_in_words():
        show.start(Path(sys.argv[0]).stem, quiet=quiet, explaining=explaining)
        if not one_settings_file:
            main(options.pop("files") or [file or _default_file()], **options)
            return
        settings = load(file or _default_file())
        begin(settings, trace=not changes_nothing)
        with contextlib.nullcontext() if changes_nothing else settings.state.lock():
            main(settings, **options)


def begin(settings: Settings, trace: bool = True) -> None:
    """Begin the narration for a settings file; its first line says which settings and which CA."""
    show.trace_to(settings.files.directory / "trace.jsonl" if trace else None)
    show.say(f"settings {settings.file}   CA {ca_name(settings.acme.directory)}")
    for key in settings.state.keys_open_to_others():
        show.warn(f"{key} can be read by other users of this machine; only you should: chmod 600 {key}")


def ca_name(directory: str) -> str:
    known = KNOWN_CAS.get(directory)
    return f"{known}, {directory}" if known else directory


@contextlib.contextmanager
def _signals_unwind() -> Iterator[None]:
    """SIGTERM and the terminal's end unwind like Ctrl-C, so that a script told to stop takes its DNS records back."""
    known = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    # Under nohup a hang-up is ignored, and stays so.
    heard = [number for number in known if number and signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        # Nothing is left to unwind: a signal that comes now ends the interpreter, and has it print no traceback.
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _errors_in_words() -> Iterator[None]:
    """Tell whatever a user or a server can cause in words, and exit with its code; never a traceback for it."""
    try:
        yield
        sys.stdout.flush()
    except Failure as failure:
        show.failure(failure)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        show.failure(Failure("interrupted", "run it again; it goes on from where it was"))
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output has left. Keep the interpreter from failing over it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        show.failure(os_failure(error))
        sys.exit(1)
    except RecursionError:
        # Parsed it could be, but a few calls further down there were no levels left to print it.
        show.failure(
            Failure(
                "an answer or a file is nested too deeply to be read",
                "see the last exchange above: who says such a thing?",
            )
        )
        sys.exit(1)


def _parser(docstring: str | None, add_options: AddOptions | None) -> argparse.ArgumentParser:
    more = " …" if add_options else ""
    parser = argparse.ArgumentParser(
        usage=f"python {Path(sys.argv[0]).name} [--config FILE] [--quiet | --explain]{more}",
        description=docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = "settings file; else $ACME_CONFIG, ./acme.ini, ./lab.ini"
    parser.add_argument("--config", type=Path, metavar="FILE", help=where)
    narration = parser.add_mutually_exclusive_group()
    narration.add_argument("--quiet", action="store_true", help="print the result and errors only")
    narration.add_argument("--explain", action="store_true", help="say before each call what it is for")
    if add_options:
        add_options(parser)
    return parser


def _default_file() -> Path:
    if os.environ.get("ACME_CONFIG"):
        return Path(os.environ["ACME_CONFIG"])
    for candidate in ("acme.ini", "lab.ini"):
        if Path(candidate).exists():
            return Path(candidate)
    raise Usage(
        "there is no acme.ini here",
        "to practise, run python3 lab up in another terminal; for a real CA, copy acme.example.ini to acme.ini",
    )

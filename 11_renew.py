"""Renew what is due, and install it: the program that runs at night, year after year.

Call    GET renewalInfo; then those of 02, 04, 05, 06, and of 07, 08, 10 where they are configured
RFC     9773, 8555 section 7.4
Reads   acme.ini, or several: 11_renew.py site-a.ini site-b.ini folder-of-settings
Writes  state/renewal.json, and what those scripts write
Run     python 11_renew.py
Lab     docs/labs/11.md, 20 minutes; promised in part 1
Next    11_renew.py again, twice a day
"""

import argparse
import gc
import importlib
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509 as crypto_x509

from common import acme, config, renewal, show, x509
from common.failure import Failure, Usage, os_failure
from common.install import is_revoked
from common.state import Locked, State

# Let's Encrypt takes 300 orders of an account in three hours. What is due beyond this waits for the next run.
MOST_ORDERS = 250
ORDER_STEPS = ("04_new_order", "05_dns_challenge", "06_finalize")


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def suggested_window(answer: acme.Answer) -> tuple[datetime, datetime]:
    """Start and end of the CA's suggestion, in UTC (RFC 9773 section 4.2)."""
    window = answer.object(suggestedWindow=dict)["suggestedWindow"]
    try:
        # Python before 3.11 knows neither the "Z" of RFC 3339 nor its nanoseconds, which Go's servers write.
        texts = (re.sub(r"\.[0-9]+", "", window[edge]).upper() for edge in ("start", "end"))
        start, end = (datetime.fromisoformat(text.replace("Z", "+00:00")) for text in texts)
        if start >= end or start.tzinfo is None or end.tzinfo is None:
            raise ValueError
        return start.astimezone(timezone.utc), end.astimezone(timezone.utc)
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
        raise Failure(
            f"{answer.url}: the CA's suggestedWindow cannot be: {window}", "none: it is passed over"
        ) from None


def ask_ca(
    settings: config.Settings, record: renewal.Record, leaf: crypto_x509.Certificate, now: datetime
) -> None:
    """Ask the CA when it suggests to renew: a plain GET, unsigned. Whatever goes wrong, there is another rule."""
    serial = x509.serial_hex(leaf)
    show.step("renewalInfo", "RFC 9773 section 4")
    try:
        ca = acme.connect(settings, acme.load_account_key(settings))
        if "renewalInfo" not in ca.directory:
            show.facts(advice="this CA gives none")
            record.not_heard(serial, now)
            return
        answer = ca.get(f"{ca.url('renewalInfo')}/{x509.certificate_id(leaf)}")
        start, end = suggested_window(answer)
    except (Failure, ValueError) as error:
        show.warn(f"no advice from the CA: {error}")
        record.not_heard(serial, now)
        return
    record.heard(serial, start, end, answer.retry_after, now)
    if isinstance(answer.body.get("explanationURL"), str):
        show.warn(f"the CA explains: {answer.body['explanationURL']}")


def current_leaf(state: State) -> crypto_x509.Certificate | None:
    # 06_finalize.py puts this file in place last. Where it is missing, 06 broke off and is to go on.
    path = state.path("fullchain.pem")
    return x509.split_chain(path.read_bytes(), path)[0] if path.exists() else None


def due(settings: config.Settings, record: renewal.Record, now: datetime) -> tuple[bool, str]:
    """Whether to renew now, and the reason, or the day it will be."""
    leaf = current_leaf(settings.state)
    if not leaf:
        return True, "there is no certificate yet"
    if is_revoked(settings.state, leaf):
        return True, "the certificate was revoked"
    missing = set(settings.certificate.domains) - set(x509.dns_names(leaf))
    if missing:
        return True, f"the certificate lacks {', '.join(sorted(missing))}"
    if record.may_ask(x509.serial_hex(leaf), now):
        ask_ca(settings, record, leaf, now)
    moment = record.due_at(leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    rule = "the CA's suggestion" if record.renew_at else "its lifetime"
    return (
        now >= moment,
        f"due on {moment:%Y-%m-%d %H:%M} UTC by {rule}, expires {leaf.not_valid_after_utc:%Y-%m-%d}",
    )


def missing_installs(settings: config.Settings, record: renewal.Record) -> dict[str, str]:
    """The scripts that are to install the certificate and have not: script -> what is installed then, and where."""
    leaf = current_leaf(settings.state)
    serial = x509.serial_hex(leaf) if leaf else ""
    wanted = {
        "07_install_cdn": settings.cdn.domains,
        "08_install_apigw": settings.apigateway.domains,
        # At night there is no one to ask for a password.
        "10_pkcs12_iis": (settings.iis.windows,) if settings.iis.password_file else (),
    }
    missing = {script: " ".join((serial, *places)) for script, places in wanted.items() if places}
    return {script: what for script, what in missing.items() if record.installed.get(script) != what}


def take_step(script: str, settings: config.Settings, **given: acme.Client) -> None:
    """Do what a person would do by running that script."""
    with show.part(script):
        importlib.import_module(script).main(settings, **given)


def install(settings: config.Settings, record: renewal.Record) -> None:
    """Run each missing install; one that fails does not keep the others from it."""
    failures = []
    for script, what in missing_installs(settings, record).items():
        try:
            take_step(script, settings)
        except Failure as failure:
            show.warn(f"{script}: {failure.what}")
            failures.append(failure)
            continue
        record.installed[script] = what
        record.save(settings.state)
    if failures:
        raise Failure("\n".join(failure.what for failure in failures), failures[0].remedy)


def renew(settings: config.Settings, force: bool = False, dry_run: bool = False) -> tuple[bool, str]:
    """Renew one certificate if it is due, install it where it is not.

    Returns whether there is a new certificate, and what was done, in words.
    """
    state, now = settings.state, utc_now()
    record = renewal.load(state)
    is_due, why = due(settings, record, now)
    show.facts(due=why)
    if not dry_run and state.folder.exists():
        record.save(state)
    if force and not is_due:
        is_due, why = True, "asked for with --force"
    if not is_due and not missing_installs(settings, record):
        return False, f"nothing to do: {why}"
    if (pause := record.pausing_until(now)) and not force:
        raise Waiting(
            f"{record.failures} failed in a row; the next try is not before {pause:%Y-%m-%d %H:%M:%S} UTC. "
            f"The last one: {record.last_failure}",
            "mend that; then wait, or let --force try at once",
        )
    if dry_run and is_due:
        return False, f"would renew: {why}"
    if dry_run:
        return False, f"would install: {', '.join(missing_installs(settings, record))}"
    try:
        if is_due:
            take_step("02_create_cert_key_csr", settings)
            # Each would connect to the CA by itself, and ask for the directory and a nonce again.
            ca = acme.account_client(settings)
            for script in ORDER_STEPS:
                take_step(script, settings, ca=ca)
        # The old certificate is served until this one is; should an install fail, the next run goes on here.
        install(settings, record)
    except Usage:
        raise  # settings to be corrected, which cost the CA nothing
    except Failure as failure:
        retry_after = failure.answer.retry_after if isinstance(failure, acme.Problem) else None
        record.failed(failure.what, retry_after, utc_now())
        record.save(state)
        raise
    record.succeeded()
    record.save(state)
    if not is_due:
        return False, "installed what was missing"
    leaf = current_leaf(state)
    again = leaf and renewal.by_lifetime(leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    return True, f"renewed: {why}" + (f"; due again by {again:%Y-%m-%d}" if again else "")


class Waiting(Failure):
    """An earlier failure's pause is not over."""


def settings_files(named: list[Path]) -> list[Path]:
    """The files named, and every .ini of the folders named."""
    files = []
    for path in named:
        inside = sorted(path.glob("*.ini")) if path.is_dir() else [path]
        if not inside:
            raise Usage(
                f"{path}: there is no settings file (*.ini) in this folder",
                "name the files, or another folder",
            )
        files += inside
    return files


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="*", type=Path, help="settings files, or folders of them, in place of --config"
    )
    parser.add_argument(
        "--force", action="store_true", help="renew now, due or not, and whatever failed before"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")


def main(files: list[Path], force: bool = False, dry_run: bool = False) -> None:
    outcomes: list[tuple[Path, int, str]] = []
    folders: dict[Path, Path] = {}
    tries = 0
    for file in settings_files(files):
        if tries == MOST_ORDERS:
            outcomes.append((file, 0, f"left for the next run, after {MOST_ORDERS} orders in this one"))
            continue
        # What is wrong with these settings does not belong into the last one's trace.
        show.trace_to(None)
        try:
            settings = config.load(file)
            # Two that share a folder would replace each other's certificate, night after night.
            other = folders.setdefault(settings.files.directory.resolve(), file)
            if other != file:
                raise Usage(
                    f"{file} and {other} have the same state folder", "give each its own [files] directory"
                )
            config.begin(settings, trace=not dry_run)
            with settings.state.lock():
                renewed, outcome = renew(settings, force, dry_run)
            outcomes.append((file, 0, outcome))
            if renewed:
                tries += 1
                show.result(settings.state.path("fullchain.pem"))
                # Connections are held by references that go round in a circle: without this, dozens would stay open.
                gc.collect()
        except Locked as locked:
            outcomes.append((file, 0, f"nothing done: {locked.what}"))
        except (Failure, OSError) as error:
            # Each certificate on its own: one that fails does not keep the others from being renewed.
            failure = error if isinstance(error, Failure) else os_failure(error)
            show.failure(failure)
            tries += not isinstance(failure, Usage | Waiting)
            outcomes.append((file, failure.exit_code, failure.what.splitlines()[0]))

    lines = [f"    {'ok' if code == 0 else 'FAILED':<8} {file}: {text}" for file, code, text in outcomes]
    show.step("summary")
    show.say("\n".join(lines))
    worst = max(code for _, code, _ in outcomes)
    if worst:
        sys.exit(worst)


if __name__ == "__main__":
    config.run(main, __doc__, add_options, one_settings_file=False)

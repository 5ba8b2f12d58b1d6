"""The state folder: files that are born private, replaced whole, and never half-written."""

import contextlib
import errno
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from common.failure import Failure, Usage


class State:
    """One state folder. Names are relative to it: "account.key", "pending/order.json"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def keys_open_to_others(self) -> list[Path]:
        """The private keys that have been made readable for more than their owner. (Windows says so for every file.)"""
        if os.name == "nt":
            return []
        found = [key for key in sorted(self.folder.rglob("*.key")) if not key.is_symlink()]
        return [key for key in found if key.stat().st_mode & 0o077]

    def read(self, name: str, written_by: str) -> bytes:
        """A file's content; Usage "run … first" when it is not there."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            raise Usage(f"{self.path(name)} is missing", f"run {written_by} first") from None

    def read_json(self, name: str, written_by: str, **members: type) -> dict[str, Any]:
        """A JSON object with these members: read_json(…, order_url=str); Usage when it is not there or not whole."""
        text = self.read(name, written_by)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        remedy = f"move it away and run {written_by} again"
        if not isinstance(value, dict):
            raise Usage(f"{self.path(name)} is damaged: not a JSON object", remedy)
        for member, kind in members.items():
            if not isinstance(value.get(member), kind):
                raise Usage(f"{self.path(name)} is damaged: it has no usable {member}", remedy)
        return value

    def write(self, name: str, content: bytes | str) -> Path:
        """Write or replace a file in one step: whoever reads sees the old content or the new, never a part.

        Every file is 0600 from its first byte, keys and everything else.
        """
        path = self.path(name)
        with failures_named(path):
            _make_private_folder(path.parent)
            data = content.encode() if isinstance(content, str) else content
            # mkstemp makes the file 0600; in the same folder, so that the rename cannot cross a file system.
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            sync_folder(path.parent)
        return path

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that is not there yet; False, and nothing is written, when it is, even since a moment ago."""
        if self.path(name).exists():
            return False
        whole = self.write(f"{name}.new-{secrets.token_hex(8)}", content)
        try:
            # A second name for the file, which cannot take the place of another as a rename would.
            os.link(whole, self.path(name))
        except FileExistsError:
            return False
        except OSError:
            os.replace(whole, self.path(name))  # a file system without links
        finally:
            whole.unlink(missing_ok=True)
            sync_folder(whole.parent)
        return True

    def write_json(self, name: str, value: dict[str, Any]) -> Path:
        return self.write(name, json.dumps(value, indent=2) + "\n")

    def remove(self, *names: str) -> None:
        for name in names:
            with failures_named(self.path(name)):
                self.path(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other scripts out of this folder; Locked when one is at work in it.

        The system lets go of the lock with the process, however that ends, so no lock is ever left behind.
        """
        if not self.folder.exists():
            yield  # there is nothing yet that two could quarrel about
            return
        with open(self.path(".lock"), "a", encoding="ascii", opener=_open_private) as file:
            try:
                _lock_file(file)
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                    raise Failure(
                        f"{self.folder}: this file system has no locks, which keep two scripts apart",
                        "put [files] directory on a local disk",
                    ) from None
                raise Locked(
                    f"another script is at work in {self.folder}", "wait until it has ended"
                ) from None
            yield

    def install_certificate(self, serial: str, files: dict[str, bytes]) -> None:
        """Make a key and its certificates the current set, all at the same instant.

        serial: the leaf's serial number in hex
        files: name -> content: certificate.key, certificate.pem, chain.pem, fullchain.pem

        The set is written to history/<serial>/ first. Then one rename of the link "current" changes what
        certificate.key, certificate.pem, … lead to, so that at no instant a reader finds a key beside another
        key's certificate. The set replaced stays in its own folder.
        """
        for name, content in files.items():
            self.write(f"history/{serial}/{name}", content)
        try:
            self._link("current", f"history/{serial}")
            for name in files:
                self._link(name, f"current/{name}")
        except (OSError, NotImplementedError):
            # Windows gives links to administrators only. Copies then: each whole, the key first; should the
            # power go in between, 06_finalize.py run again completes the set, as pending/ is still there.
            for name, content in files.items():
                self.write(name, content)

    def _link(self, name: str, target: str) -> None:
        path = self.path(name)
        if path.is_symlink() and os.readlink(path) == target:
            return
        temporary = path.with_name(f".{path.name}.link")
        temporary.unlink(missing_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


class Locked(Failure):
    """Another process is at work in the state folder."""


@contextlib.contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn an OSError into a Failure that names the file: disk full, no permission, not a folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Failure(
            f"cannot write {path}: {reason}", "free space or permissions, then run this again"
        ) from None


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder outlive a power cut. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock_file(file: IO[str]) -> None:
    """Lock a file without waiting; OSError when another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _make_private_folder(folder: Path) -> None:
    for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)

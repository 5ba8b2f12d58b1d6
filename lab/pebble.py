"""Pebble, the ACME CA for tests from Let's Encrypt, as a subprocess that never outlives the lab."""

import json
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from lab import LabError, pki

START_TIMEOUT = 20.0
STOP_TIMEOUT = 3.0
ADDRESS_IN_USE = ("address already in use", "Only one usage of each socket address")

# Linux kills the process with its parent, whatever ends that one. The launcher sets this on itself and then
# becomes Pebble; subprocess's preexec_fn could do it too, but not safely in a program with threads.
DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"cannot run {sys.argv[2]}: {error.strerror}")
"""


@dataclass(frozen=True)
class PebbleOptions:
    """Pebble's own knobs. The defaults make it quick and predictable; a real CA is neither."""

    strict: bool = False
    nonce_reject: int = 0  # percent of good nonces answered with badNonce
    va_sleep: int = 0  # up to this many seconds of sleep before each validation
    authz_reuse: int = 0  # percent of valid authorizations reused for new orders
    chain_length: int = 1  # how many intermediates
    alternate_roots: int = 0
    orders_per_page: int = 3
    validity_period: int = 90 * 24 * 3600  # seconds
    eab_keys: Mapping[str, str] = field(default_factory=dict, repr=False)  # kid -> MAC key, base64url
    eab_required: bool = False
    blocked_domains: tuple[str, ...] = ()
    # Of newer Pebbles; an older one passes over them.
    retry_after: int = 0  # seconds, with orders and authorizations that are under way; since 2.5
    profiles: Mapping[str, int] = field(default_factory=dict)  # name -> validity period; since 2.7
    extra_config: Mapping[str, Any] = field(default_factory=dict)  # keyAlgorithm, caaIdentities, ...


class PortInUseError(LabError):
    """Another program listens on a port that Pebble was given."""

    def __init__(self, port: int, part: str) -> None:
        super().__init__(
            f"port {port} ({part}) is in use: end that program, or choose another port; 0 takes a free one"
        )
        self.port = port


class Pebble:
    """One running CA: `directory_url` for ACME, `management_url` for what only a test CA tells."""

    def __init__(
        self,
        binary: str | Path,
        directory: Path,
        tls: pki.ServerFiles,
        dns_server: str,
        port: int,
        management_port: int,
        options: PebbleOptions = PebbleOptions(),
    ) -> None:
        """`directory` takes its configuration and log; `dns_server` is the host:port that validations ask."""
        self.address = f"127.0.0.1:{port}"
        self.directory_url = f"https://{self.address}/dir"
        self.management_url = f"https://127.0.0.1:{management_port}"
        self.log = directory / "pebble.log"
        self.options = options
        self._binary = str(binary)
        self._config = directory / "pebble.json"
        self._tls = tls
        self._dns_server = dns_server
        self._ports = {"CA": port, "CA management": management_port}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Pebble":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id while Pebble runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process; wait_until_ready() is a call of its own, so that others can start meanwhile."""
        pki.write_private(self._config, json.dumps(self._configuration(), indent=2).encode())
        launched = threading.Event()
        # The kernel takes the thread that started a process for its parent, so one thread stays for Pebble.
        self._thread = threading.Thread(target=self._run, args=(launched,), name="pebble", daemon=True)
        self._thread.start()
        launched.wait()

    def wait_until_ready(self) -> None:
        """Wait until both listeners answer over TLS verified with the lab's root."""
        deadline = time.monotonic() + START_TIMEOUT
        urls = [self.directory_url, f"{self.management_url}/roots/0"]
        # Short at first: a port that another program holds may never answer, while Pebble is long gone.
        patience = 0.25
        while urls:
            if self.pid is None:
                raise self._death()
            if time.monotonic() > deadline:
                raise LabError(f"Pebble does not answer at {urls[0]}; its log: {self.log}")
            try:
                self.get(urls[0], timeout=patience)
                urls.pop(0)
            except OSError:
                time.sleep(0.02)
                patience = min(2 * patience, 5.0)

    def get(self, url: str, timeout: float = 10.0) -> bytes:
        """GET from one of Pebble's two listeners."""
        # Loopback is never asked for through a proxy, whatever the environment says.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls_context())
        )
        request = urllib.request.Request(url, headers={"User-Agent": "acme-lab/1.0"})  # noqa: S310
        with opener.open(request, timeout=timeout) as response:
            return response.read()

    def issuer_roots(self) -> str:
        """The PEM of every root that this Pebble issues from; they are new at each start."""
        count = self.options.alternate_roots + 1
        return "".join(self.get(f"{self.management_url}/roots/{index}").decode() for index in range(count))

    def certificate_status(self, serial: int) -> dict[str, Any]:
        """What the CA says of a certificate: Status Valid or Revoked, and more."""
        return json.loads(self.get(f"{self.management_url}/cert-status-by-serial/{serial:x}"))

    def wait_until_ended(self) -> NoReturn:
        """Wait for as long as Pebble runs; that it ends by itself is an error."""
        # In slices, because a longer wait cannot be interrupted on Windows.
        while self._thread.is_alive():
            self._thread.join(1.0)
        raise self._death()

    def stop(self) -> None:
        """End the process and wait until it is gone."""
        process = self._process
        if process is None:
            return
        process.terminate()
        self._thread.join(STOP_TIMEOUT)
        if self._thread.is_alive():
            process.kill()
            self._thread.join()

    def _run(self, launched: threading.Event) -> None:
        command = [self._binary, "-config", str(self._config), "-dnsserver", self._dns_server]
        if self.options.strict:
            command.append("-strict")
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
        with open(self.log, "wb") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    command,
                    env=os.environ | self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in the terminal is for the lab, which then ends Pebble itself.
                    start_new_session=True,
                )
            except OSError as error:
                log.write(f"cannot run {self._binary}: {error.strerror}".encode())
                return
            finally:
                launched.set()
        self._process.wait()

    def _configuration(self) -> dict[str, Any]:
        options = self.options
        profiles = options.profiles or {"default": options.validity_period}
        pebble: dict[str, Any] = {
            "listenAddress": f"127.0.0.1:{self._ports['CA']}",
            "managementListenAddress": f"127.0.0.1:{self._ports['CA management']}",
            "certificate": str(self._tls.certificate),
            "privateKey": str(self._tls.key),
            # Where http-01 and tls-alpn-01 validations would connect to; nothing listens there.
            "httpPort": 5002,
            "tlsPort": 5001,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": options.eab_required,
            "externalAccountMACKeys": dict(options.eab_keys),
            "domainBlocklist": list(options.blocked_domains),
            "certificateValidityPeriod": options.validity_period,
            # Pebble has this instead since 2.7, and draws a profile for an order that names none.
            "profiles": {
                name: {"description": f"valid for {seconds} seconds", "validityPeriod": seconds}
                for name, seconds in profiles.items()
            },
            "retryAfter": {"authz": options.retry_after, "order": options.retry_after},
        }
        return {"pebble": pebble | dict(options.extra_config)}

    def _environment(self) -> dict[str, str]:
        options = self.options
        return {
            "PEBBLE_VA_NOSLEEP": "0" if options.va_sleep else "1",
            "PEBBLE_VA_SLEEPTIME": str(options.va_sleep),
            "PEBBLE_VA_ALWAYS_VALID": "0",
            "PEBBLE_WFE_NONCEREJECT": str(options.nonce_reject),
            "PEBBLE_AUTHZREUSE": str(options.authz_reuse),
            "PEBBLE_WFE_ORDERS_PER_PAGE": str(options.orders_per_page),
            "PEBBLE_CHAIN_LENGTH": str(options.chain_length),
            "PEBBLE_ALTERNATE_ROOTS": str(options.alternate_roots),
        }

    def _tls_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self._tls.root))

    def _death(self) -> LabError:
        """Say why Pebble ended by itself: a taken port by its name, anything else by the end of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        for line in lines:
            if any(text in line for text in ADDRESS_IN_USE):
                for part, port in self._ports.items():
                    if f":{port}" in line:
                        return PortInUseError(port, part)
        last_words = "".join(f"\n    {line}" for line in lines)
        return LabError(f"Pebble ended by itself; its last words:{last_words}")

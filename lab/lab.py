"""The lab as one object: `with Lab(directory) as lab: ...` starts every part and ends every part."""

import atexit
import configparser
import contextlib
import errno
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lab import LabError, bootstrap, pki, world
from lab.alibaba import AccessKey, Cloud, Gateway
from lab.ca_proxy import CaProxy
from lab.edge import CertificateStore, Edge
from lab.faults import Faults
from lab.faults.alibaba import Request as CloudRequest
from lab.nameserver import NameServer
from lab.pebble import Pebble, PebbleOptions, PortInUseError

# A port that was free a moment ago may be taken when Pebble binds it.
PEBBLE_STARTS = 5

Part = TypeVar("Part", bound=AbstractContextManager[Any])


class Ports(NamedTuple):
    """A port for each listener on loopback; 0 is any free one."""

    ca: int = 0
    management: int = 0
    dns: tuple[int, int] = (0, 0)
    alibaba: int = 0
    cdn: int = 0
    apigateway: int = 0


ANY_PORTS = Ports()


class Lab:
    """A CA, two name servers, the emulated cloud and its edges; several labs may run side by side."""

    pebble: Pebble

    def __init__(
        self,
        directory: Path | str | None = None,
        lags: tuple[float, float] = (0.0, 0.0),
        ports: Ports = ANY_PORTS,
        pebble: Path | str | None = None,
        faults: Iterable[str] = (),
        fault_seed: int = 0,
        round_trips: tuple[float, float] = (0.0, 0.0),
        **pebble_options: Any,
    ) -> None:
        """`directory` takes the lab's own files (by default a temporary one); `lags` are in seconds.

        `round_trips` are how far away the CA and Alibaba Cloud are, in seconds.
        `pebble` is the program to run, by default the one that bootstrap finds; `faults` are those to begin
        with (lab/faults), more can be switched while the lab runs, and `fault_seed` decides where those by
        chance strike; `pebble_options` are the fields of PebbleOptions.
        """
        self.cloud = Cloud()
        self.faults = Faults(*faults, seed=fault_seed)
        self._given_directory = directory
        self._lags = lags
        self._round_trips = round_trips
        self._ports = ports
        self._binary = pebble
        self._options = PebbleOptions(**pebble_options)
        self._parts = contextlib.ExitStack()

    def __enter__(self) -> "Lab":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start every part and return when all of them answer."""
        # Best effort where the kernel does not end Pebble with us, and for the temporary folder.
        atexit.register(self.stop)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every thread, child and port; may be called twice."""
        atexit.unregister(self.stop)
        self.faults.end()
        self._parts.close()

    @property
    def directory_url(self) -> str:
        """The CA's ACME directory."""
        return f"https://{self.ca.address}/dir"

    @property
    def management_url(self) -> str:
        """Pebble's management interface."""
        return self.pebble.management_url

    @property
    def nameservers(self) -> tuple[str, str]:
        """The two name server addresses; the objects behind them are in dns_servers."""
        return self.dns_servers[0].address, self.dns_servers[1].address

    @property
    def access_key(self) -> AccessKey:
        """The learner's access key, to which everything is allowed."""
        return self._world.access_key

    @property
    def group_id(self) -> str:
        """The API group that the learner's API Gateway domains are bound to."""
        return self._world.group_id

    def issuer_roots(self) -> str:
        """The PEM of the roots that the CA issues from (not its TLS root: that is ca_bundle)."""
        return self.pebble.issuer_roots()

    def environment(self) -> dict[str, str]:
        """What a child's environment needs for the learner's access key."""
        environment = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": self.access_key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": self.access_key.access_key_secret,
        }
        if self.access_key.security_token:
            environment["ALIBABA_CLOUD_SECURITY_TOKEN"] = self.access_key.security_token
        return environment

    def write_settings(
        self,
        path: Path | str,
        domains: Iterable[str] = world.CERTIFICATE_DOMAINS,
        state: Path | str = "state",
        header: str = "",
        **sections: Mapping[str, object],
    ) -> None:
        """Write a settings file for this lab; `sections` add or replace keys, and None takes one out.

        For example: lab.write_settings("lab.ini", iis={"windows": "2016"}, cdn={"domains": None}).
        """
        settings: dict[str, dict[str, object]] = {
            "acme": {
                "directory": self.directory_url,
                "agree_to_terms_of_service": "yes",
                "ca_bundle": self.ca_bundle,
            },
            "certificate": {"domains": ", ".join(domains)},
            "dns": {"provider": "alidns", "nameservers": ", ".join(self.nameservers)},
            "alibaba": {
                "region": world.REGION,
                "alidns_endpoint": self.alibaba_endpoint,
                "cdn_endpoint": self.alibaba_endpoint,
                "apigateway_endpoint": self.alibaba_endpoint,
                "sts_endpoint": self.alibaba_endpoint,
                "ca_bundle": self.ca_bundle,
            },
            "cdn": {"domains": ", ".join(world.CDN_DOMAINS), "verify_at": self.cdn_edge},
            "apigateway": {
                "group_id": self.group_id,
                "domains": ", ".join(world.APIGATEWAY_DOMAINS),
                "verify_at": self.apigateway_edge,
            },
            "files": {"directory": state},
        }
        for section, changes in sections.items():
            settings.setdefault(section, {}).update(changes)
        parser = configparser.ConfigParser(interpolation=None)
        for section, values in settings.items():
            parser[section] = {key: str(value) for key, value in values.items() if value is not None}
        with open(path, "w", encoding="utf-8") as file:
            file.write(header)
            parser.write(file)

    def _start(self) -> None:
        binary = self._binary or bootstrap.find_pebble()
        self.directory = self._make_directory()
        self._world = world.seed(self.cloud)
        self._tls = pki.write_server_files(self.directory)
        self.ca_bundle = self._tls.root
        first, second = self._ports.dns
        self.dns_servers = (
            self._open("name server 1", first, self._name_server(self._lags[0], "1")),
            self._open("name server 2", second, self._name_server(self._lags[1], "2")),
        )
        self.ca = self._open("CA", self._ports.ca, self._ca_proxy)
        # Pebble takes the longest to start; the rest starts meanwhile.
        self._launch_pebble(binary)
        self.gateway = self._open("Alibaba Cloud", self._ports.alibaba, self._gateway)
        self.alibaba_endpoint = f"{self.gateway.host}:{self.gateway.port}"
        self.cdn_edge = self._open("CDN edge", self._ports.cdn, self._edge(self.cloud.cdn, "CDN")).address
        self.apigateway_edge = self._open(
            "API Gateway edge", self._ports.apigateway, self._edge(self.cloud.apigateway, "API Gateway")
        ).address
        self._await_pebble(binary)

    def _make_directory(self) -> Path:
        if self._given_directory is None:
            directory = Path(tempfile.mkdtemp(prefix="acme-lab-"))
            self._parts.callback(shutil.rmtree, directory, ignore_errors=True)
            return directory
        directory = Path(self._given_directory).absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def _open(self, part: str, port: int, make: Callable[[int], Part]) -> Part:
        """Make a listener for a port (0: any) and start it; it stops with the lab."""
        try:
            return self._parts.enter_context(make(port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LabError(
                    f"port {port} ({part}) is in use: end that program, or choose another port; 0 takes a free one"
                ) from error
            raise LabError(f"cannot listen on port {port} ({part}): {error.strerror}") from error

    def _name_server(self, lag: float, label: str) -> Callable[[int], NameServer]:
        return lambda port: NameServer(self.cloud.dns, lag, port=port, faults=self.faults, label=label)

    def _ca_proxy(self, port: int) -> CaProxy:
        return CaProxy(self._tls, self.faults, port=port, round_trip=self._round_trips[0])

    def _gateway(self, port: int) -> Gateway:
        def around(action: str, answer: Callable[[], Any]) -> Any:
            return self.faults.through("Alibaba Cloud", (action,), CloudRequest(self.cloud, action), answer)

        return Gateway(
            self.cloud,
            self._tls.certificate,
            self._tls.key,
            port=port,
            around=around,
            round_trip=self._round_trips[1],
        )

    def _edge(self, store: CertificateStore, title: str) -> Callable[[int], Edge]:
        return lambda port: Edge(store, title, self.directory, port=port, faults=self.faults)

    def _launch_pebble(self, binary: Path | str) -> None:
        # A CA that sees what the slowest server says is the test of "wait until every server has it".
        slowest = max(self.dns_servers, key=lambda server: server.lag)
        free_ports = _free_ports(2)
        self.pebble = Pebble(
            binary,
            self.directory,
            self._tls,
            dns_server=slowest.address,
            port=free_ports[0],
            management_port=self._ports.management or free_ports[1],
            options=self._options,
        )
        self._parts.enter_context(self.pebble)
        self.ca.upstream = self.pebble.address

    def _await_pebble(self, binary: Path | str) -> None:
        """Wait for Pebble; a lost race for automatic ports is run again."""
        for _ in range(PEBBLE_STARTS - 1):
            try:
                self.pebble.wait_until_ready()
                return
            except PortInUseError as conflict:
                if conflict.port == self._ports.management:
                    raise
                self._launch_pebble(binary)
        self.pebble.wait_until_ready()


def _free_ports(count: int) -> list[int]:
    """Different ports on loopback that nothing listens on at this moment."""
    with contextlib.ExitStack() as sockets:
        ports = []
        for _ in range(count):
            listener = sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports

"""A client that connects to servers all the while, as a browser that trusts one root would."""

import socket
import ssl
import threading


class Visitor(threading.Thread):
    """Does handshakes while it is a context; failures and handshakes say how they went."""

    def __init__(self, roots: str, targets: list[tuple[str, str]]) -> None:
        """roots: PEM of what is trusted; targets: (host:port, server name)"""
        super().__init__(daemon=True)
        self.context = ssl.create_default_context(cadata=roots)
        self.targets = targets
        self.ended = threading.Event()
        self.failures: list[str] = []
        self.handshakes = 0

    def __enter__(self) -> "Visitor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            for address, name in self.targets:
                host, _, port = address.rpartition(":")
                try:
                    with socket.create_connection((host, int(port)), 5) as connection:
                        self.context.wrap_socket(connection, server_hostname=name).close()
                    self.handshakes += 1
                except OSError as error:
                    self.failures.append(f"{name}: {error}")

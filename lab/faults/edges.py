"""What may go wrong where certificates are served. An answer is (chain, private key), or None for the default."""

from lab.faults import Call, ConnectionLost, Part

PART = Part("edges", ("cdn", "apigateway"))

KeyPair = tuple[str, str] | None


@PART.fault()
def edge_old(call: Call) -> KeyPair:
    """A certificate is installed, as the API says, and the edges serve another one."""
    return None


@PART.fault()
def edge_down(call: Call) -> KeyPair:
    """The edges break off every TLS handshake."""
    raise ConnectionLost

"""The whole emulated cloud: keys, zones, CDN domains, API groups, and a log of the calls it answered."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from .alidns import AliDns
from .apigateway import ApiGateway
from .cdn import Cdn
from .errors import ApiError
from .ram import Ram
from .sts import Sts

# The log is for tests and for watching a run; a lab that stays up for days must not grow without end.
CALLS_KEPT = 20_000


@dataclass(frozen=True)
class Call:
    """One answered request.

    `query` is the query string as it was received, so that a test can see what a client put into a URL;
    in `parameters` certificates, keys, tokens and signatures are replaced by their length.
    """

    time: float
    access_key_id: str
    product: str
    action: str
    http_method: str
    query: str = field(repr=False)
    parameters: dict[str, str]
    status: int
    code: str


class Cloud:
    """All state, in memory; every method may be called from any thread."""

    def __init__(self) -> None:
        self.ram = Ram()
        self.dns = AliDns()
        self.cdn = Cdn()
        self.apigateway = ApiGateway()
        self.sts = Sts(self.ram)
        self.calls: list[Call] = []
        self.on_call: Callable[[Call], None] | None = None
        self._lock = threading.Lock()
        self._faults: defaultdict[str, list[ApiError | None]] = defaultdict(list)

    @property
    def products(self) -> tuple[AliDns, Cdn, ApiGateway, Sts]:
        """The products, in the order in which an unknown action is attributed."""
        return self.dns, self.cdn, self.apigateway, self.sts

    def fail_next(self, action: str, error: ApiError, times: int = 1) -> None:
        """Answer the next well signed calls of this action with an error, without doing anything."""
        with self._lock:
            self._faults[action] += [error] * times

    def lose_next_answer(self, action: str, times: int = 1) -> None:
        """Do the next well signed calls of this action, and close the connection instead of answering."""
        with self._lock:
            self._faults[action] += [None] * times

    def take_fault(self, action: str) -> tuple[bool, ApiError | None]:
        """(True, error or None for a lost answer) when a fault is due for this action."""
        with self._lock:
            faults = self._faults.get(action)
            return (True, faults.pop(0)) if faults else (False, None)

    def record(self, call: Call) -> None:
        """Append to the log and tell whoever watches."""
        with self._lock:
            self.calls.append(call)
            if len(self.calls) > CALLS_KEPT:
                del self.calls[: CALLS_KEPT // 2]
        if self.on_call is not None:
            self.on_call(call)

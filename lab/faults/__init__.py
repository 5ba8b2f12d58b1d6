"""Faults that the lab makes on request: named, counted or by chance, switched on and off while it runs.

    name[=VALUE][@WHERE][*COUNT | %CHANCE]

    ca-reset-after@newOrder*1    the CA takes the next order, and the connection breaks before its answer
    alibaba-throttled%20         one call in five, drawn with a seed
    dns-lag=5@2                  the second name server is five seconds late

A fault is a function of one Call. It may ask() what would be answered without it, and returns what is answered.
"""

import random
import re
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lab import LabError

Ask = Callable[[], Any]

_SPECIFICATION = re.compile(
    r"(?P<name>[a-z0-9-]+)(?:=(?P<value>-?[0-9.]{1,12}))?(?:@(?P<where>\w+))?"
    r"(?:\*(?P<count>[0-9]{1,6})|%(?P<chance>[0-9]{1,3}))?"
)


class ConnectionLost(Exception):  # noqa: N818 - an event, not an error of the lab's
    """The connection ends now, without an answer."""


@dataclass(frozen=True)
class Call:
    """One request at one of the lab's parts, on its way through a fault.

    ask: what the part answers, or what the next fault makes of it
    request: what the part knows of the request, such as a ca.Request
    value: the number behind "=", if there is one
    pause: wait for some seconds; shorter when the lab ends meanwhile
    """

    ask: Ask
    request: Any
    value: float | None
    pause: Callable[[float], None]


@dataclass(frozen=True)
class Fault:
    """A fault by its name: the part it belongs to, the requests that it strikes by default, what it does."""

    name: str
    part: str
    at: tuple[str, ...]
    act: Callable[[Call], Any]
    description: str


@dataclass(frozen=True)
class Part:
    """A part of the lab where faults happen. where: what may stand behind "@", and limits them to some requests."""

    name: str
    where: tuple[str, ...]
    faults: list[Fault] = field(default_factory=list)

    def fault(
        self, *at: str, name: str = "", description: str = ""
    ) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
        """Make a fault of a function: ca_slow() is "ca-slow", and its docstring is the description."""

        def add(act: Callable[[Call], Any]) -> Callable[[Call], Any]:
            words = description or (act.__doc__ or "").removesuffix(".")
            self.faults.append(Fault(name or act.__name__.replace("_", "-"), self.name, at, act, words))
            return act

        return add


@dataclass(frozen=True)
class Active:
    """A fault that is on. left: how many requests it still strikes, None for all; chance: in percent."""

    specification: str
    fault: Fault
    value: float | None
    at: tuple[str, ...]
    left: int | None
    chance: int

    def concerns(self, part: str, labels: tuple[str, ...]) -> bool:
        return self.fault.part == part and (not self.at or not set(self.at).isdisjoint(labels))


class Faults:
    """What is on in one lab. Every method may be called from any thread, and while requests are under way."""

    def __init__(self, *specifications: str, seed: int = 0) -> None:
        self.struck: Counter[str] = Counter()
        self._active: list[Active] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        for specification in specifications:
            self.on(specification)

    def on(self, specification: str) -> None:
        """Switch a fault on; the same one with the same WHERE is replaced."""
        new = parse(specification)
        with self._lock:
            self._active = [one for one in self._active if (one.fault, one.at) != (new.fault, new.at)] + [new]

    def off(self, name: str | None = None) -> None:
        """Switch a fault off by its name, or all of them."""
        if name is not None:
            find(name)
        with self._lock:
            self._active = [one for one in self._active if name not in (None, one.fault.name)]

    def active(self) -> list[str]:
        """The specifications of the faults that are on, with what is left of a count."""
        with self._lock:
            return [
                one.specification
                if one.left is None
                else re.sub(r"\*\d+$", f"*{one.left}", one.specification)
                for one in self._active
            ]

    def through(self, part: str, labels: tuple[str, ...], request: Any, ask: Ask) -> Any:
        """Answer a request: what ask() returns, after every fault that strikes it has had its way."""
        for one in self._strike(part, labels):
            ask = partial(one.fault.act, Call(ask, request, one.value, self._pause))
        return ask()

    def end(self) -> None:
        """Let nobody wait any longer: the lab stops."""
        self._ended.set()

    def _strike(self, part: str, labels: tuple[str, ...]) -> list[Active]:
        """The faults that strike this request, each counted."""
        # Mostly there are none, and then nobody should wait for a lock.
        if not self._active:
            return []
        striking, kept = [], []
        with self._lock:
            for one in self._active:
                strikes = one.concerns(part, labels) and self._random.randrange(100) < one.chance
                if strikes:
                    striking.append(one)
                    self.struck[one.fault.name] += 1
                    if one.left is not None:
                        one = replace(one, left=one.left - 1)
                if one.left != 0:
                    kept.append(one)
            self._active = kept
        return striking

    def _pause(self, seconds: float) -> None:
        self._ended.wait(seconds)


def parse(specification: str) -> Active:
    """What `name=VALUE@WHERE*COUNT` says; LabError, with what may be said instead, when it says nothing."""
    match = _SPECIFICATION.fullmatch(specification)
    if not match:
        raise LabError(f"{specification}: a fault is NAME[=VALUE][@WHERE][*COUNT or %CHANCE]", exit_code=2)
    fault = find(match["name"])
    where = match["where"]
    allowed = next(part.where for part in parts() if part.name == fault.part)
    if where and where not in allowed:
        raise LabError(f"{specification}: WHERE may be {', '.join(allowed)}", exit_code=2)
    try:
        value = float(match["value"]) if match["value"] else None
    except ValueError:
        raise LabError(f"{specification}: {match['value']} is not a number", exit_code=2) from None
    left = int(match["count"]) if match["count"] else None
    chance = int(match["chance"]) if match["chance"] else 100
    if left == 0 or chance > 100:
        raise LabError(f"{specification}: COUNT is from 1, CHANCE from 0 to 100", exit_code=2)
    return Active(specification, fault, value, (where,) if where else fault.at, left, chance)


def find(name: str) -> Fault:
    """The fault of this name."""
    for fault in all_faults():
        if fault.name == name:
            return fault
    raise LabError(f"there is no fault {name}; python3 lab faults lists them", exit_code=2)


def parts() -> tuple[Part, ...]:
    """Every part with its faults, in the order in which they are listed."""
    # Not above: those modules take what they need from this one.
    from lab.faults import alibaba, ca, edges, name_servers

    return ca.PART, name_servers.PART, alibaba.PART, edges.PART


def all_faults() -> list[Fault]:
    return [fault for part in parts() for fault in part.faults]


def listed() -> str:
    """All faults, for people."""
    lines = [(__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[0], ""]
    for part in parts():
        lines += [part.name]
        lines += [f"  {fault.name:<22} {fault.description}" for fault in part.faults]
        lines += textwrap.wrap(
            f"WHERE: {', '.join(part.where)}", 108, initial_indent="  ", subsequent_indent="  "
        )
        lines += [""]
    return "\n".join(lines).rstrip()

"""What others may send in place of what they should: valid documents with something wrong somewhere.

Most of what is wrong is deep inside: random text alone is thrown out at the door, and tests little more than the door.
"""

import contextlib
import copy
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from common import show
from common.failure import Failure

# How many examples each test of fuzzing takes; a long run sets it: FUZZ=100000.
EXAMPLES = int(os.environ.get("FUZZ", "0"))
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

DELETED, DOUBLED, DEEP, LONG = object(), object(), "@deep@", "@long@"
STRANGE_TEXTS = ["", " ", "\n\n", "\ud800", "\x00", "\x1b[2J\x07", "\u202e", "é", "٣", "x", "%", "SSLPri=x"]
ADDRESSES = [
    "https://",
    "https://[",
    "https://ca.example:99999/",
    "http://ca.example/",
    "//ca.example",
    "../etc/passwd",
]
BROKEN_ADDRESSES = ["https://\x00/", "https://\ud800/", "https://ca.example/a b\r\nHost: x"]
DOMAINS = [
    "a..b.example",
    ".",
    "*.*.example",
    "a" * 64 + ".example",
    "example.test.",
    "xn--a.example",
    "192.0.2.1",
]
MOMENTS = ["2026-13-01T00:00:00Z", "9999-12-31T23:59:59.9Z", "0001-01-01", "0001-01-01T00:00:00+23:59"]
RIGHT_ELSEWHERE = [
    "valid",
    "invalid",
    "pending",
    "dns-01",
    "-----BEGIN CERTIFICATE-----",
    "-----BEGIN PRIVATE KEY-----",
]
WORDS = [*STRANGE_TEXTS, *ADDRESSES, *BROKEN_ADDRESSES, *DOMAINS, *MOMENTS, *RIGHT_ELSEWHERE]
NUMBERS = [0, -1, 1, 200, 2**31, 2**64, 10**400, -(10**30), 0.0, 1.5, 1e308, float("inf"), float("nan")]
SHAPES: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"x": {"x": []}},
    [1, "x"],
    DEEP,
    LONG,
]
EDITS = [DELETED, DELETED, DOUBLED, *SHAPES, *WORDS, *NUMBERS]


def fuzz(*strategies: st.SearchStrategy[Any], examples: int = 300) -> Callable[[Callable[..., None]], Any]:
    """Run a test with so many examples, always the same ones; in a long run with as many as $FUZZ says, and others."""

    def decorate(test: Callable[..., None]) -> Any:
        limits = settings(
            max_examples=EXAMPLES or examples,
            derandomize=not EXAMPLES,
            database=None,
            # One example may be unlucky on a loaded machine; a hang is found by whoever waits for the run.
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return limits(given(*strategies)(test))

    return decorate


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value: each path is the keys and indices that lead there."""
    yield here
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, member in members:
        yield from paths(member, (*here, key))


def edited(document: Any, edits: list[tuple[int, Any]]) -> Any:
    """A JSON value after some edits, each at one of its places: another value, or nothing, or the same twice."""
    # The outermost value can be replaced too, so it is put into a box.
    box = [copy.deepcopy(document)]
    for number, change in edits:
        *way, last = list(paths(box))[1:][number % (sum(1 for _ in paths(box)) - 1)]
        parent: Any = box
        for key in way:
            parent = parent[key]
        if change is DELETED:
            if parent is not box:
                del parent[last]
        elif change is DOUBLED:
            parent[last] = [parent[last], copy.deepcopy(parent[last])]
        else:
            parent[last] = copy.deepcopy(change)
    return box[0]


def damaged(text: bytes, damages: list[tuple[int, int]]) -> bytes:
    """Octets with some of them replaced; 256 and more cut the text there."""
    octets = bytearray(text)
    for place, octet in damages:
        if octets:
            at = place % len(octets)
            if octet < 256:
                octets[at] = octet
            else:
                del octets[at:]
    return bytes(octets)


damages = st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 270)), max_size=3)
edits = st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(EDITS) | st.text(max_size=5)), max_size=3)


def values(document: Any) -> st.SearchStrategy[Any]:
    """A JSON value that is not quite this one."""
    return edits.map(lambda chosen: edited(document, chosen))


def texts(*documents: Any) -> st.SearchStrategy[bytes]:
    """One of some JSON documents, or nearly, as the octets that arrive: mostly still JSON, and sometimes not."""

    def written(value: Any, depth: int, hurt: list[tuple[int, int]]) -> bytes:
        text = json.dumps(value).replace(f'"{DEEP}"', "[" * depth + "]" * depth)
        return damaged(text.replace(LONG, "y" * 20_000).encode(), hurt)

    depths = st.sampled_from([15, 200, 700, 900, 950, 3_000, 100_000])
    return st.builds(
        written, st.one_of([values(document) for document in documents]), depths, st.just([]) | damages
    )


def octets(*texts: bytes) -> st.SearchStrategy[bytes]:
    """One of some texts, or nearly."""
    return st.builds(damaged, st.sampled_from(texts), damages)


@contextlib.contextmanager
def ends_well() -> Iterator[io.StringIO]:
    """What happens inside is done, or is a Failure with cause and remedy, and nothing printed steers a terminal."""
    printed = io.StringIO()
    with redirect_stderr(printed), redirect_stdout(printed):
        # What is written there is put together all the same.
        show.start("04_fuzz", trace=Path(os.devnull))
        try:
            yield printed
        except Failure as failure:
            assert failure.what and failure.remedy
            show.failure(failure)
        except RecursionError:
            pass  # JSON exactly so deep that it can just be parsed; config.run() has words for it
        finally:
            show.start("")
    assert not CONTROL.search(printed.getvalue()), ascii(printed.getvalue())

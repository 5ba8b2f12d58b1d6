"""When to renew, and when to leave the CA alone: what a night job remembers from run to run. RFC 9773 section 4."""

import random
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

from common.failure import Failure
from common.state import State

FILE = "renewal.json"
# After so many failures in a row the next try waits this long, so that a broken job does not use up the CA's limits.
PAUSES = (timedelta(minutes=1), timedelta(minutes=10), timedelta(minutes=100), timedelta(days=1))
# The CA's word on when to ask again is taken within these bounds (RFC 9773 section 4.3.2) ...
SOONEST_QUESTION, LATEST_QUESTION = timedelta(minutes=1), timedelta(days=1)
# ... and without its word, this is when (section 4.3.3).
NEXT_QUESTION = timedelta(hours=6)


def by_lifetime(start: datetime, end: datetime) -> datetime:
    """When to renew without the CA's advice: a third of the lifetime before its end, half for under ten days."""
    lifetime = end - start
    return end - lifetime / (2 if lifetime < timedelta(days=10) else 3)


def at_the_latest(start: datetime, end: datetime) -> datetime:
    """When to renew whatever the CA advises: a tenth of the lifetime before its end, so that tries are left."""
    return end - (end - start) / 10


@dataclass
class Record:
    """The content of renewal.json. Moments are in UTC, ISO 8601.

    serial: of the certificate that window and renew_at are about
    window: start and end of the CA's suggestion; renew_at: the moment drawn from it, once
    failures: in a row; try_again_at: not before this
    installed: script -> serial of the certificate it has installed, and where
    """

    serial: str = ""
    window: list[str] = field(default_factory=list)
    renew_at: str = ""
    ask_again_at: str = ""
    failures: int = 0
    try_again_at: str = ""
    last_failure: str = ""
    installed: dict[str, str] = field(default_factory=dict)

    def may_ask(self, serial: str, now: datetime) -> bool:
        """Whether it is time to ask the CA about this certificate."""
        return (
            serial != self.serial or not self.ask_again_at or now >= datetime.fromisoformat(self.ask_again_at)
        )

    def heard(
        self, serial: str, start: datetime, end: datetime, retry_after: float | None, now: datetime
    ) -> None:
        """Keep what the CA suggests. A moment is drawn once for each window, not anew at each question."""
        window = [start.isoformat(), end.isoformat()]
        if (serial, window) != (self.serial, self.window):
            # Uniformly at random (section 4.2), so that the certificates of the world do not come all at once.
            moment = start + (end - start) * random.random()
            self.serial, self.window, self.renew_at = serial, window, moment.isoformat()
        pause = NEXT_QUESTION if retry_after is None else timedelta(seconds=min(retry_after, 86400))
        self.ask_again_at = (now + min(max(pause, SOONEST_QUESTION), LATEST_QUESTION)).isoformat()

    def not_heard(self, serial: str, now: datetime) -> None:
        """The CA gives no advice, or not now: an earlier word on this certificate still holds."""
        if serial != self.serial:
            self.serial, self.window, self.renew_at = serial, [], ""
        self.ask_again_at = (now + NEXT_QUESTION).isoformat()

    def due_at(self, start: datetime, end: datetime) -> datetime:
        """When the certificate with these dates is to be renewed."""
        if not self.renew_at:
            return by_lifetime(start, end)
        return min(datetime.fromisoformat(self.renew_at), at_the_latest(start, end))

    def pausing_until(self, now: datetime) -> datetime | None:
        """The moment before which no new try is made; None when one may be made now."""
        moment = datetime.fromisoformat(self.try_again_at) if self.try_again_at else None
        return moment if moment and now < moment else None

    def failed(self, words: str, retry_after: float | None, now: datetime) -> None:
        """A try failed. The next one waits, longer each time, and as long as the CA asked for."""
        self.failures += 1
        pause = PAUSES[min(self.failures, len(PAUSES)) - 1]
        if retry_after is not None:
            pause = max(pause, timedelta(seconds=min(retry_after, 30 * 86400)))
        self.try_again_at, self.last_failure = (now + pause).isoformat(), words

    def succeeded(self) -> None:
        self.failures, self.try_again_at, self.last_failure = 0, "", ""

    def save(self, state: State) -> None:
        state.write_json(FILE, asdict(self))


def load(state: State) -> Record:
    """What is remembered; nothing when the file is missing or damaged, which is no reason not to renew."""
    try:
        record = Record(
            **state.read_json(FILE, "11_renew.py", serial=str, window=list, failures=int, installed=dict)
        )
        if record.failures < 0:
            return Record()
        for text in (record.renew_at, record.ask_again_at, record.try_again_at, *record.window):
            if text and datetime.fromisoformat(text).tzinfo is None:
                return Record()
    except (Failure, TypeError, ValueError):
        return Record()
    return record

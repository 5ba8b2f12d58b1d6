"""A thousand certificates for half a year, by the code that decides in 11_renew.py, with a clock of the test's own."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from conftest import load_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.renewal import Record

START = datetime(2026, 11, 24, tzinfo=timezone.utc)
DAYS = 180
RUNS_A_DAY = 2
MOST_ORDERS = load_script("11").MOST_ORDERS


@dataclass
class Certificate:
    serial: int
    start: datetime
    end: datetime
    record: Record = field(default_factory=Record)


@dataclass(frozen=True)
class World:
    """What may go wrong: the CA is down for some days; orders fail by chance; advice is absent or odd."""

    seed: int
    count: int
    lifetime: timedelta
    down_from: int
    down_days: int
    failing: float
    advice: str  # "none", "good", "sometimes", "late", "absurd"


def advise(world: World, certificate: Certificate, chance: random.Random, now: datetime) -> None:
    """The answer that the CA of this world gives about a certificate."""
    record, serial = certificate.record, str(certificate.serial)
    if not record.may_ask(serial, now):
        return
    lifetime = certificate.end - certificate.start
    if world.advice == "none" or (world.advice == "sometimes" and chance.random() < 0.5):
        record.not_heard(serial, now)
    elif world.advice == "late":
        record.heard(serial, certificate.end, certificate.end + lifetime, 21600, now)
    elif world.advice == "absurd":
        record.heard(
            serial, certificate.end + timedelta(days=3000), certificate.end + timedelta(days=9000), 0, now
        )
    else:
        start = certificate.start + lifetime * 0.6
        record.heard(serial, start, start + lifetime * 0.05, 21600, now)


def simulate(world: World) -> tuple[timedelta, int, int]:
    """Run the half year; returns the least time to expiry seen, most orders in three hours, and orders in all."""
    chance = random.Random(world.seed)
    # All issued on one day, which is the hardest: all are due on one day, too.
    certificates = [Certificate(n, START, START + world.lifetime) for n in range(world.count)]
    serial, least = world.count, world.lifetime
    moments: list[datetime] = []
    for step in range(DAYS * RUNS_A_DAY):
        now = START + timedelta(days=step / RUNS_A_DAY, seconds=chance.uniform(0, 7200))
        day = step // RUNS_A_DAY
        down = world.down_from <= day < world.down_from + world.down_days
        tries = 0
        for certificate in certificates:
            least = min(least, certificate.end - now)
            if tries == MOST_ORDERS:
                continue
            if not down:
                advise(world, certificate, chance, now)
            elif certificate.record.may_ask(str(certificate.serial), now):
                certificate.record.not_heard(str(certificate.serial), now)
            record = certificate.record
            if now < record.due_at(certificate.start, certificate.end) or record.pausing_until(now):
                continue
            # A try costs an order, whether it succeeds or not.
            tries += 1
            moments.append(now)
            if down or chance.random() < world.failing:
                record.failed("the CA is down", None, now)
                continue
            serial += 1
            certificate.serial, certificate.start, certificate.end = serial, now, now + world.lifetime
            record.succeeded()
    most = max(
        (sum(1 for m in moments if now <= m < now + timedelta(hours=3)) for now in set(moments)), default=0
    )
    return least, most, len(moments)


def reserve(lifetime: timedelta, advice: str) -> timedelta:
    """How long before expiry a certificate is due at the latest."""
    if advice in ("late", "absurd"):
        return lifetime / 10
    return lifetime / (2 if lifetime < timedelta(days=10) else 3)


LIFETIMES = (timedelta(days=90), timedelta(days=64), timedelta(days=45), timedelta(hours=160))


def test_a_thousand_certificates_of_one_day_are_renewed_in_time_and_within_the_limits():
    world = World(1, 1000, timedelta(days=90), down_from=60, down_days=20, failing=0.05, advice="none")
    least, most, total = simulate(world)
    assert least > timedelta(days=1)
    assert most <= 300
    # Every 60 days at the most; the tries of the outage, one a day for each certificate, come on top.
    assert 2000 <= total <= 3000 * 1.1 + 20 * 1000


@given(
    seed=st.integers(0, 2**32),
    lifetime=st.sampled_from(LIFETIMES),
    down_from=st.integers(0, DAYS),
    down_share=st.floats(0, 1),
    failing=st.floats(0, 0.2),
    advice=st.sampled_from(["none", "good", "sometimes", "late", "absurd"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_however_the_failures_fall_none_comes_within_a_day_of_its_expiry(
    seed: int, lifetime: timedelta, down_from: int, down_share: float, failing: float, advice: str
):
    # What holds: an outage of the CA may last until a certificate's reserve is used up but for four days, in which
    # the pause after failures (a day at most) runs out and all are renewed. Where there is no such room, none.
    room = reserve(lifetime, advice) - timedelta(days=4)
    down_days = max(0, int(room.days * down_share))
    world = World(seed, 200, lifetime, down_from, down_days, failing if room.days > 0 else 0.0, advice)
    least, most, _ = simulate(world)
    short = lifetime < timedelta(days=10)
    nearest = timedelta(0) if short and advice in ("late", "absurd") else timedelta(days=1)
    assert least > nearest
    assert most <= 300

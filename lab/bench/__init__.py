"""`python3 lab bench`: our scripts and other clients, one after another, in turns, in the same lab.

What is compared are ratios within one run of the bench. Seconds alone say more about the machine.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import LabError
from lab.bench import peers, picture, report
from lab.bench.clients import CLIENTS, IN_ONE, OURS, Client
from lab.bench.issuance import CONDITIONS, Bench, Failed, Run, median
from lab.up import end_on_signals

NAMES = (1, 2, 20, 100)
# What takes longer is run once: its figure is not about milliseconds.
LONG = 20.0


def run(options: argparse.Namespace) -> int:
    """Run the bench; exit code 1 when one of our own scripts failed."""
    end_on_signals()
    if options.scale:
        from lab.bench import scale

        return scale.run()
    conditions = chosen(CONDITIONS, options.condition)
    clients = chosen(CLIENTS, options.client)
    missing = peers.install(client.program for client in clients)
    present = [client for client in clients if client.program not in missing]
    result = report.Result(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        machine=peers.machine(),
        versions=peers.versions(),
        settings={client.name: client.settings for client in present},
        missing={client.name: missing[client.program] for client in clients if client.program in missing},
    )
    kept = Path(options.json) if options.json else None
    if kept and kept.exists():
        # One may measure in parts: what is not measured anew stays.
        before = report.from_json(json.loads(kept.read_text(encoding="utf-8")))
        result.cells = before.cells
        result.settings = before.settings | result.settings
    print(report.heading(result), flush=True)
    for condition in conditions:
        with Bench(condition) as bench:
            for names in options.names or NAMES:
                cell = report.Cell(
                    condition, names, compare(bench, present, names, options.runs, options.limit)
                )
                result.cells = [one for one in result.cells if not one.same(cell)] + [cell]
                print(report.table(cell), flush=True)
                # A bench takes long. What it has found so far is not lost when it is ended.
                if kept:
                    kept.write_text(json.dumps(report.as_json(result), indent=1) + "\n", encoding="utf-8")
                if options.svg:
                    Path(options.svg).write_text(picture.draw(result.cells), encoding="utf-8")
    return int(
        any(isinstance(cell.outcomes.get(name), str) for cell in result.cells for name in (OURS, IN_ONE))
    )


def compare(bench: Bench, clients: list[Client], names: int, runs: int, limit: float) -> dict[str, Run | str]:
    """Each client in turn, `runs` times over; its median, or in words why it brought no certificate."""
    taken: dict[str, list[Run]] = {client.name: [] for client in clients}
    failures: dict[str, Run | str] = {}
    for client in turns(clients, runs, taken, failures):
        try:
            one = bench.run(client, names, limit)
        except Failed as failure:
            failures[client.name] = str(failure)
            print(f"    {client.name}: {failure}", file=sys.stderr, flush=True)
            continue
        taken[client.name].append(one)
        print(f"    {client.name}, {names} names: {one.wall:.2f} s", file=sys.stderr, flush=True)
    return {name: failures.get(name) or median(some) for name, some in taken.items()}


def turns(
    clients: list[Client], runs: int, taken: dict[str, list[Run]], failures: dict[str, Any]
) -> Iterator[Client]:
    """Whose turn it is: everybody once, then everybody again who has not failed and does not take long."""
    for _ in range(runs):
        for client in clients:
            slow = any(run.wall > LONG for run in taken[client.name])
            if client.name not in failures and not slow:
                yield client


def chosen(known: Any, names: list[str] | None) -> list[Any]:
    """Those of the known ones that have these names; all of them when no name is given."""
    by_name = {one.name: one for one in known}
    for name in names or ():
        if name not in by_name:
            raise LabError(f"there is no {name!r}; there are: {', '.join(by_name)}", exit_code=2)
    return [by_name[name] for name in names] if names else list(known)

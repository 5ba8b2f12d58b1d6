"""What the bench found, as tables for people and as JSON for machines."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.bench.clients import CLIENTS, OURS
from lab.bench.issuance import Condition, Parts, Run, floor

HEAD = ("date", "machine", "versions", "settings", "missing")
HEADERS = (
    "client",
    "seconds",
    "× ours",
    "× floor",
    "CPU s",
    "MB",
    "ACME",
    "Alibaba",
    "DNS",
    "late s",
    "left",
    "lab",
)


@dataclass(frozen=True)
class Cell:
    """One condition and one number of names: client -> its median, or why there is none."""

    condition: Condition
    names: int
    outcomes: dict[str, Run | str]

    def same(self, other: "Cell") -> bool:
        return (self.condition.name, self.names) == (other.condition.name, other.names)


@dataclass
class Result:
    """A whole run of the bench."""

    date: str
    machine: str
    versions: dict[str, str]
    settings: dict[str, str]
    missing: dict[str, str]
    cells: list[Cell] = field(default_factory=list)


def page(result: Result) -> str:
    """Everything, in Markdown."""
    return "\n".join([heading(result), *map(table, result.cells)])


def ratios(result: Result, condition: str, numbers: Sequence[int]) -> str:
    """How many times as long as our scripts everybody takes, in Markdown; the quickest with the most names first."""
    cells = {cell.names: cell for cell in result.cells if cell.condition.name == condition}
    runs = [{n: r for n, r in cells[number].outcomes.items() if isinstance(r, Run)} for number in numbers]
    lines = [f"| client | {' | '.join(f'{number} names' for number in numbers)} |"]
    lines += ["|---|" + "--:|" * len(numbers)]
    for name, _ in sorted(runs[-1].items(), key=lambda pair: pair[1].wall):
        figures = [f"{of[name].wall / of[OURS].wall:.1f}" if name in of else "" for of in runs]
        lines.append(f"| {name}{_star(name)} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def heading(result: Result) -> str:
    """When, where, who, and with which settings; who is missing, and why."""
    lines = [f"{result.date}; {result.machine}.", ""]
    lines += [", ".join(f"{name} {version}" for name, version in sorted(result.versions.items())), ""]
    lines += ["| client | settings |", "|---|---|"]
    lines += [f"| {name}{_star(name)} | {settings} |" for name, settings in result.settings.items()]
    lines += [f"| {name} | **missing**: {reason} |" for name, reason in result.missing.items()]
    return "\n".join(lines) + "\n\n\\* drives Alibaba Cloud DNS itself\n"


def table(cell: Cell) -> str:
    """A table in Markdown, the quickest first."""
    least = floor(cell.condition, cell.names)
    names = "1 name" if cell.names == 1 else f"{cell.names} names"
    lines = [f"### {names}: {cell.condition.title}", ""]
    lines += [f"The floor is {least:.2f} s." if least else "The floor is nothing but computing.", ""]
    lines += [f"| {' | '.join(HEADERS)} |", "|---|" + "--:|" * (len(HEADERS) - 1)]
    ours = cell.outcomes.get(OURS)
    runs = {name: run for name, run in cell.outcomes.items() if isinstance(run, Run)}
    for name, run in sorted(runs.items(), key=lambda pair: pair[1].wall):
        figures = [
            f"{run.wall:.2f}",
            f"{run.wall / ours.wall:.2f}" if isinstance(ours, Run) else "",
            f"{run.wall / least:.2f}" if least else "",
            f"{run.cpu:.2f}",
            f"{run.peak / 1e6:.0f}",
            str(run.acme),
            str(run.alibaba),
            str(run.dns),
            f"{run.late:.2f}",
            str(run.left),
            f"{run.lab:.2f}",
        ]
        lines.append(f"| {name}{_star(name)} | {' | '.join(figures)} |")
    for name, outcome in cell.outcomes.items():
        if isinstance(outcome, str):
            # What a program says may have what a table takes for a column's end.
            lines.append(f"| {name}{_star(name)} | {outcome.replace('|', '/')} |" + " |" * (len(HEADERS) - 2))
    return "\n".join(lines) + "\n"


def as_json(result: Result) -> dict[str, Any]:
    cells = [
        {
            "condition": asdict(cell.condition),
            "names": cell.names,
            "floor": floor(cell.condition, cell.names),
            "clients": {name: _figures(outcome) for name, outcome in cell.outcomes.items()},
        }
        for cell in result.cells
    ]
    return {name: getattr(result, name) for name in HEAD} | {"cells": cells}


def from_json(document: dict[str, Any]) -> Result:
    """What as_json() made a document of."""
    cells = []
    for cell in document["cells"]:
        condition = Condition(**cell["condition"] | {"lags": tuple(cell["condition"]["lags"])})
        outcomes = {
            name: figures.get("failed") or Run(**figures | {"parts": Parts(**figures["parts"])})
            for name, figures in cell["clients"].items()
        }
        cells.append(Cell(condition, cell["names"], outcomes))
    return Result(**{name: document[name] for name in HEAD}, cells=cells)


def _figures(outcome: Run | str) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {"failed": outcome}
    return {**outcome._asdict(), "parts": outcome.parts._asdict()}


def _star(name: str) -> str:
    return " \\*" if any(client.name == name and client.alibaba for client in CLIENTS) else ""

"""A picture of where the time goes: a bar for each client, in parts. SVG, for light and dark."""

from collections.abc import Sequence
from html import escape

from lab.bench.issuance import Parts, Run
from lab.bench.report import Cell

# What is drawn: under distance, where it matters.
SHOWN = ("distance", (2, 20))
LEFT, WIDTH, RIGHT = 230, 560, 70
BAR, ROW, HEAD = 14, 22, 44
PARTS = {
    "start": "start-up",
    "alibaba": "Alibaba Cloud",
    "dns": "DNS",
    "ca": "CA",
    "waiting": "waiting, working",
}
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .start { fill: #8250df } .alibaba { fill: #d4730b } .dns { fill: #1a7f37 } .ca { fill: #0969da }
  .waiting { fill: #9aa4af }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .start { fill: #a371f7 } .alibaba { fill: #f0883e } .dns { fill: #3fb950 } .ca { fill: #58a6ff }
    .waiting { fill: #6e7681 }
  }
"""


def draw(cells: Sequence[Cell]) -> str:
    """The picture of the cells that are worth one; of all of them when none is."""
    condition, names = SHOWN
    worth = [cell for cell in cells if cell.condition.name == condition and cell.names in names] or cells
    body, top = legend(), HEAD
    for cell in worth:
        panel, height = bars(cell, top)
        body += panel
        top += height
    width = LEFT + WIDTH + RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}" '
        f'role="img">\n<title>Seconds from the order to the certificate on disk</title>\n'
        f"<style>{STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def legend() -> list[str]:
    shapes = []
    for number, (part, words) in enumerate(PARTS.items()):
        x = 10 + number * 130
        shapes.append(f'<rect class="{part}" x="{x}" y="12" width="12" height="12"/>')
        shapes.append(f'<text x="{x + 18}" y="22">{escape(words)}</text>')
    return shapes


def bars(cell: Cell, top: int) -> tuple[list[str], int]:
    """The bars of one cell, the quickest first, and how high they are together."""
    runs = {name: run for name, run in cell.outcomes.items() if isinstance(run, Run)}
    longest = max((run.wall for run in runs.values()), default=1.0)
    title = f"{cell.names} {'name' if cell.names == 1 else 'names'}: {cell.condition.title}"
    shapes = [f'<text class="title" x="10" y="{top + 12}">{escape(title)}</text>']
    y = top + ROW
    for name, run in sorted(runs.items(), key=lambda pair: pair[1].wall):
        shapes.append(f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        x = float(LEFT)
        for part in PARTS:
            width = share(run.parts, part) * run.wall / longest * WIDTH
            shapes.append(f'<rect class="{part}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"/>')
            x += width
        shapes.append(f'<text x="{x + 6:.1f}" y="{y + 11}">{run.wall:.1f} s</text>')
        y += ROW
    return shapes, y - top + ROW


def share(parts: Parts, part: str) -> float:
    """A part's share of the whole, 0 to 1."""
    return float(getattr(parts, part)) / (sum(parts) or 1.0)

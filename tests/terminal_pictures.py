"""Pictures of terminals, from real runs: python tests/terminal_pictures.py writes docs/terminal-*.svg."""

import os
import pty
import re
import sys
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.text import Text

from lab import Lab

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 108
USUAL_PORTS = ("14000", "5301", "5302", "5300", "5443", "5444")
# Name of the picture -> the command that it shows, and from where to where.
PICTURES = {
    "explain": ("04_new_order.py --explain", "settings", "    Replay-Nonce"),
    "proof": ("05_dns_challenge.py --explain", "05  TXT records", "05  clean-up"),
}
SERIES = ("01_create_account_key.py", "02_create_cert_key_csr.py", "03_new_account.py")
# As rich's own, without the fonts that it would fetch from elsewhere.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px ui-monospace, Menlo, Consolas, monospace; }}
.{unique_id}-title {{ font: bold 18px system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def in_a_terminal(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a command writes to a terminal, colours and all."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(command[0], command, environment)  # noqa: S606
    written = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux's way of saying that the other side is closed
            break
        if not piece:
            break
        written += piece
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    text = written.decode(errors="replace").replace("\r\n", "\n")
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(text)
    return text


def take(folder: Path) -> dict[str, str]:
    """Run the series in a lab of its own; returns what the pictures show, with their colours."""
    taken = {}
    with Lab(folder / "lab", lags=(0.0, 1.0)) as lab:
        lab.write_settings(folder / "lab.ini", state="lab-state")
        environment = {**lab.environment(), "PATH": os.environ["PATH"], "TERM": "xterm-256color"}
        environment |= {"COLUMNS": str(COLUMNS), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        addresses = (lab.directory_url.split("/")[2], *lab.nameservers, lab.alibaba_endpoint, lab.cdn_edge)
        for command in (*SERIES, *(command for command, *_ in PICTURES.values())):
            script, *options = command.split()
            text = in_a_terminal([sys.executable, str(ROOT / script), *options], folder, environment)
            for usual, actual in zip(USUAL_PORTS, addresses, strict=False):
                text = text.replace(actual, f"127.0.0.1:{usual}")
            for name, (shown, first, last) in PICTURES.items():
                if shown == command:
                    taken[name] = part_of(text, first, last)
    return taken


def part_of(text: str, first: str, last: str) -> str:
    """From the line that begins with `first` up to the one that begins with `last`, colours not counted."""
    lines = text.split("\n")
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).lstrip("\r") for line in lines]
    start = next(n for n, line in enumerate(plain) if line.startswith(first))
    end = next(n for n, line in enumerate(plain) if n > start and line.startswith(last))
    return "\n".join(lines[start:end])


def draw(name: str, text: str) -> str:
    """The picture of a terminal with this text, its ANSI colours understood."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    # A line that renews itself is written again and again; the last of it is what stands there in the end.
    lines = [line.rpartition("\r")[2] for line in re.sub(r"\x1b\[\?25.|\x1b\[\d?[AK]", "", text).split("\n")]
    console.print(Text.from_ansi("\n".join(lines)))
    return console.export_svg(title=f"python {PICTURES[name][0]}", code_format=FORMAT, unique_id="terminal")


def main() -> None:
    with TemporaryDirectory() as folder:
        for name, text in take(Path(folder)).items():
            (ROOT / "docs" / f"terminal-{name}.svg").write_text(draw(name, text), encoding="utf-8")


if __name__ == "__main__":
    main()

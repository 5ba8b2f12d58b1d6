"""The pictures of terminals in docs/ show what the scripts print."""

import html
import os
import re
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import ROOT
from test_labs import masked

pytestmark = pytest.mark.skipif(os.name == "nt", reason="terminals are POSIX's")


def text_in(picture: str) -> str:
    """The lines of a picture, top to bottom."""
    lines: defaultdict[float, list[tuple[float, str]]] = defaultdict(list)
    for x, y, text in re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', picture):
        lines[float(y)].append((float(x), html.unescape(text).replace("\xa0", " ")))
    return "\n".join("".join(text for _, text in sorted(lines[y])) for y in sorted(lines))


def words(lines: set[str]) -> set[str]:
    """What is on the lines, wherever a terminal breaks them."""
    return {word for line in lines for word in line.split()}


def test_the_pictures_are_of_these_scripts(tmp_path: Path):
    import terminal_pictures

    for name, text in terminal_pictures.take(tmp_path).items():
        picture = (ROOT / "docs" / f"terminal-{name}.svg").read_text(encoding="utf-8")
        assert "http://" not in picture.replace("http://www.w3.org/2000/svg", "")
        shown, told = text_in(picture), text_in(terminal_pictures.draw(name, text))
        assert len(shown.splitlines()) > 20
        lacking = words(masked(shown)) - words(masked(told))
        assert not {word for word in lacking if re.search(r"[A-Za-z]{3}", word) and "-" not in word}, name

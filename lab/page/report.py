"""`python3 lab report`: the picture of a state folder's trace as one HTML file that needs nothing else."""

import argparse
import ast
import base64
import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cryptography import x509

from lab import LabError, bootstrap, look, pki

PAGE = Path(__file__).parent
TRACE = "trace.jsonl"
STYLE = '<link rel="stylesheet" href="page.css">'
SCRIPT = '<script src="page.js"></script>'


def run(options: argparse.Namespace) -> int:
    """Write the report of a state folder, and print where it is."""
    state = Path(options.state)
    output = Path(options.output or state / "report.html")
    trace = state / TRACE
    if not trace.is_file():
        raise LabError(
            f"{trace} is missing: name the state folder of a script that has run ([files] directory)",
            exit_code=2,
        )
    told = picture(state, read_trace(trace.read_bytes()))
    pki.write_private(output, self_contained(told).encode())
    print(output)
    return 0


def picture(state: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What page.js draws: these records, and the world as the state folder shows it."""
    return {
        "title": state.absolute().name,
        "scripts": script_titles(),
        "explanations": explanations(),
        "records": records,
        "world": {"certificates": certificates(state), "edges": handshakes(records)},
    }


def read_trace(content: bytes) -> list[dict[str, Any]]:
    """The records of a trace; a line that is no JSON object, such as one that a crash cut off, is passed over."""
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def script_titles() -> dict[str, str]:
    """The name of each script -> the first line of its docstring."""
    titles = {}
    for path in sorted(bootstrap.ROOT.glob("[0-9][0-9]_*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        titles[path.stem] = docstring.partition("\n")[0]
    return titles


def explanations() -> dict[str, str]:
    """What a teacher would say of each step and call: common/explain.py, which the scripts print from."""
    # Read and not imported: the lab uses nothing of common's.
    tree = ast.parse((bootstrap.ROOT / "common" / "explain.py").read_text(encoding="utf-8"))
    values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return ast.literal_eval(values[0])


def certificates(state: Path) -> list[dict[str, Any]]:
    """The certificates of a state folder, newest first: what they say, and whether they are in use or revoked."""
    revoked = _json(state / "revoked.json").get("serial")
    current = _certificate(state / "certificate.pem")
    found = filter(None, map(_certificate, (state / "history").glob("*/certificate.pem")))
    unique = {leaf.serial_number: leaf for leaf in [*found, *([current] if current else [])]}
    return [
        {
            "serial": look.serial(leaf),
            "names": sorted(look.names(leaf)),
            "until": leaf.not_valid_after_utc.date().isoformat(),
            "current": leaf == current,
            "status": "revoked" if look.serial(leaf) == revoked else _status_by_date(leaf),
        }
        for leaf in sorted(unique.values(), key=lambda leaf: leaf.not_valid_before_utc, reverse=True)
    ]


def handshakes(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last TLS handshake with each domain: what it serves, as far as the trace knows."""
    last = {record["url"]: record for record in records if record.get("kind") == "tls" and "url" in record}
    return [
        {
            "domain": str(url).removeprefix("https://").rstrip("/"),
            "locked": record.get("status") == "verified",
            "words": str(record.get("status")),
        }
        for url, record in last.items()
    ]


def self_contained(told: dict[str, Any]) -> str:
    """The page with its style, its script and the picture's data inside, and a policy that allows nothing else."""
    html, css, script = (
        (PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(css)}; script-src {_hash(script)};"
        " base-uri 'none'; form-action 'none'"
    )
    # In a script element only "<" could end it; in JSON it stands in strings only.
    data = json.dumps(told).replace("<", "\\u003c")
    html = html.replace(
        STYLE, f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{css}</style>'
    )
    return html.replace(
        SCRIPT, f'<script type="application/json" id="picture">{data}</script>\n<script>{script}</script>'
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _status_by_date(leaf: x509.Certificate) -> str:
    return "expired" if leaf.not_valid_after_utc < datetime.now(timezone.utc) else "issued"


def _certificate(path: Path) -> x509.Certificate | None:
    try:
        leaf = x509.load_pem_x509_certificate(path.read_bytes())
        # Extensions are read when they are asked for, and may be nonsense then.
        look.names(leaf)
        return leaf
    except (OSError, ValueError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

"""What the scripts promise in their docstrings and the README says of them, held to."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PASSWORD, ROOT, SCRIPTS, Learner, clean_environment

from lab import Lab

README = (ROOT / "README.md").read_text(encoding="utf-8")
POLICIES = (ROOT / "docs" / "ram-policies.md").read_text(encoding="utf-8")
FIELDS = ("Call", "RFC", "Reads", "Writes", "Run", "Lab", "Next")


def docstring(script: Path) -> tuple[str, dict[str, str]]:
    """A script's first line, and its fields with their continuation lines joined."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    title, _, rest = text.partition("\n\n")
    fields: dict[str, str] = {}
    for line in rest.splitlines():
        name, _, value = line.partition(" ")
        fields[name] = value.strip()
    return title, fields


def python_modules() -> list[Path]:
    return [*SCRIPTS.values(), *sorted((ROOT / "common").glob("*.py")), *sorted((ROOT / "lab").rglob("*.py"))]


def scripts_table() -> str:
    rows = ["| script | call | RFC | reads | writes | articles | lab |", "|---|---|---|---|---|---|---|"]
    for script in SCRIPTS.values():
        title, fields = docstring(script)
        page, minutes, part = lab_of(fields)
        cells = [fields[name] for name in ("Call", "RFC", "Reads", "Writes")]
        cells += [part, f"[{minutes} min]({page})"]
        rows.append(f"| [{script.name}]({script.name})<br>{title} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def lab_of(fields: dict[str, str]) -> tuple[str, ...]:
    """The page of a script's lab, its minutes, and the part of the articles."""
    match = re.fullmatch(r"(docs/labs/\d\d\.md), (\d+) minutes; (.+)", fields["Lab"])
    assert match, fields["Lab"]
    return match.groups()


def policies() -> dict[str, dict]:
    """The RAM policy of each script, from docs/ram-policies.md."""
    found = re.findall(r"^## (\d\d)\n\n```json\n(.+?)```", POLICIES, re.MULTILINE | re.DOTALL)
    return {number: json.loads(text) for number, text in found}


def actions(policy: dict) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def joined_policy() -> str:
    """One policy for all scripts, for a first try: every action on every resource."""
    everything = sorted(action for policy in policies().values() for action in actions(policy))
    lines = ",\n".join(f'      "{action}"' for action in everything)
    statement = f'{{\n    "Effect": "Allow",\n    "Resource": "*",\n    "Action": [\n{lines}\n    ]\n  }}'
    return f'{{\n  "Version": "1",\n  "Statement": [{statement}]\n}}'


def after(mark: str, language: str) -> str:
    """The fenced block that follows a mark in the README, without its indentation."""
    match = re.search(rf"<!-- {re.escape(mark)}[^>]*-->\n+( *)```{language}\n(.*?)\n *```", README, re.DOTALL)
    assert match, f"README.md has no {language} block after <!-- {mark} -->"
    return "\n".join(line.removeprefix(match[1]) for line in match[2].splitlines())


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_docstring_has_every_field_in_order_and_true_names(script: Path):
    title, fields = docstring(script)
    assert title.endswith(".") and "\n" not in title
    assert tuple(fields) == FIELDS
    assert all(fields.values())
    assert fields["Run"].startswith(f"python {script.name}")
    names = re.findall(r"\d\d_\w+\.py", fields["Next"])
    assert all((ROOT / name).exists() for name in names)


def test_each_script_leads_to_the_next_until_all_is_installed():
    followed = [docstring(script)[1]["Next"] for script in SCRIPTS.values()]
    for number, target in zip(followed, list(SCRIPTS.values())[1:9], strict=False):
        assert number.startswith(target.name)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_import_is_silent_and_does_nothing(script: Path, tmp_path: Path):
    code = (
        f"import importlib, sys; sys.path.insert(0, {str(ROOT)!r}); importlib.import_module({script.stem!r})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_help_prints_the_docstring_and_needs_no_settings(script: Path, tmp_path: Path):
    run = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd=tmp_path,
        env={**clean_environment(), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    assert text in run.stdout
    assert "--config" in run.stdout and "--quiet" in run.stdout


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_wrong_usage_and_missing_settings_are_exit_code_2(script: Path, tmp_path: Path):
    for arguments in (["--no-such-option"], []):
        run = subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
        )
        assert run.returncode == 2
        assert "Traceback" not in run.stderr
    assert "acme.example.ini" in run.stderr


def test_arrows_go_one_way():
    # Scripts use common and never the lab; common uses neither; the lab uses neither.
    for module in python_modules():
        tree = ast.parse(module.read_text(encoding="utf-8"))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        forbidden = {"common"} if "lab" in module.relative_to(ROOT).parts else {"lab"}
        assert not imported & (forbidden | {"tests"}), module


def test_every_function_has_types():
    for module in python_modules():
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                untyped = [
                    a.arg for a in node.args.args if a.annotation is None and a.arg not in ("self", "cls")
                ]
                assert not untyped, f"{module.name}: {node.name}({untyped})"
                assert node.returns is not None or node.name == "__init__", f"{module.name}: {node.name}"


def test_the_readmes_table_is_made_from_the_docstrings():
    assert scripts_table() in README


def test_the_readmes_policy_is_all_actions_of_the_policy_page():
    assert after("policy", "json") == joined_policy()


def limit_key(learner: Learner, allowed: set[str]) -> None:
    """Give the learner a key that may do just this."""
    key = learner.lab.cloud.ram.add_access_key(actions=allowed)
    learner.environment = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
    }


@pytest.mark.parametrize("number", ["05", "07", "08"])
def test_each_script_passes_with_the_policy_on_the_page(number: str, holder: Learner, lab: Lab):
    limit_key(holder, actions(policies()[number]))
    if number == "05":
        holder.series("02", "04")
        # Its answer lost, the record has to be found again: that is what DescribeDomainRecords is for.
        lab.cloud.lose_next_answer("AddDomainRecord")
    holder.run(number)


@pytest.mark.parametrize(
    ("number", "action"),
    [(number, action) for number, policy in policies().items() for action in sorted(actions(policy))],
)
def test_each_script_fails_without_any_one_action_of_its_policy(
    number: str, action: str, holder: Learner, lab: Lab
):
    limit_key(holder, actions(policies()[number]) - {action})
    if number == "05":
        holder.series("02", "04")
        if action == "alidns:DescribeDomainRecords":
            lab.cloud.lose_next_answer("AddDomainRecord")
    else:
        # Domains that have no certificate yet: one that is installed already needs no call.
        domain = f"{action.rpartition(':')[2].lower()}.example.test"
        lab.cloud.cdn.add_domain(domain)
        lab.cloud.apigateway.bind_domain(lab.group_id, domain)
        holder.settings(cdn={"domains": domain}, apigateway={"domains": domain})
    run = holder.run(number, code=1)
    assert f"Forbidden.RAM on {action.partition(':')[2]}" in run.err
    assert "docs/ram-policies.md" in run.err
    if number == "05":
        # With a key that may, the next run takes away what this one had to leave.
        holder.environment = lab.environment()
        holder.run("05")
        assert not (holder.state / "pending" / "dns_records.json").exists()


def test_the_python_sample_runs_and_prints_a_txt_value():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    run = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", run.stdout)


def test_the_ini_sample_loads(tmp_path: Path):
    config = importlib.import_module("common.config")
    sample = re.search(r"```ini\n(.*?)```", README, re.DOTALL)
    assert sample
    (tmp_path / "acme.ini").write_text("\n".join(line.strip() for line in sample[1].splitlines()))
    assert "production" in str(config.load(tmp_path / "acme.ini").files.directory)


def masked(text: str) -> str:
    """A sample with all that differs from run to run made equal: seconds, serials, ports, random names."""
    text = re.sub(r"\b\d+\.\d\d\b", "N.NN", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r"(my-account|my-order)/[\w-]+", r"\1/ID", text)
    text = re.sub(r"(Replay-Nonce |\"nonce\": \")[\w-]+", r"\1NONCE", text)
    text = re.sub(r"[\w-]{24}…[\w-]{8}", "SIGNATURE", text)
    text = re.sub(r"\b[0-9a-f]{8}…|\b[0-9a-f]{12,16}\b", "HEX", text)
    return re.sub(r" +", " ", text)


def test_the_demo_prints_what_the_readme_shows():
    run = subprocess.run(
        [sys.executable, str(ROOT / "lab"), "demo", "--quiet"],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert masked(after("sample: demo", "text")) in masked(run.stdout)


@pytest.fixture
def clone(tmp_path: Path, lab: Lab) -> Path:
    """The files of the repository in a folder of its own, with the lab's settings as a learner would have them."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("common", *(script.name for script in SCRIPTS.values())):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    for name in ("acme.example.ini", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "pfx-password.txt").write_text(PASSWORD)
    lab.write_settings(folder / "lab.ini", state="lab-state", iis={"password_file": "pfx-password.txt"})
    return folder


def commands(section: str) -> list[str]:
    """The lines of the sh blocks in a section of the README."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_commands_typed_by_hand_work_and_04_prints_what_the_readme_shows(clone: Path, lab: Lab):
    environment = {**clean_environment(), **lab.environment()}
    lines = commands("By hand, in the lab")
    assert lines[:2] == ["python3 lab up", ". .venv/bin/activate"]  # tests/test_lab_up.py runs the first
    for line in lines[2:]:
        program, *arguments = shlex.split(line)
        assert program == "python"
        run = subprocess.run(
            [sys.executable, *arguments], cwd=clone, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
        if arguments[0].startswith("04"):
            sample, _, _ = after("sample: 04", "text").partition("\n                   …")
            # Newer Pebbles than that of the sample have profiles, too.
            told = re.sub(r"^    profiles .*\n", "", run.stderr, flags=re.MULTILINE)
            assert masked(told).startswith(masked(sample))


def test_the_commands_for_real_are_true(clone: Path):
    lines = commands("For real")
    assert lines == [
        "python3 -m venv .venv",  # as lab/bootstrap.py does it on every clean clone, CI's among them
        ". .venv/bin/activate",
        "pip install -r requirements.txt",
        "cp acme.example.ini acme.ini",
        "export ALIBABA_CLOUD_ACCESS_KEY_ID=…",
        "export ALIBABA_CLOUD_ACCESS_KEY_SECRET=…",
    ]
    shutil.copy(clone / "acme.example.ini", clone / "acme.ini")
    run = subprocess.run(
        [sys.executable, "01_create_account_key.py"],
        cwd=clone,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0
    assert "settings acme.ini   CA Let's Encrypt staging" in run.stderr


def test_every_command_of_the_readme_is_known_to_a_test():
    sections = re.findall(r"^## (.+)$", README, re.MULTILINE)
    by_section = {section: commands(section) for section in sections if commands(section)}
    assert set(by_section) == {"See it run", "By hand, in the lab", "For real", "Every night", "Tests"}
    assert by_section["See it run"][2:] == ["python3 lab demo"]
    assert by_section["Every night"] == ["python 11_renew.py"]  # tests/test_scripts_renew.py
    ci = (ROOT / ".ci" / "run").read_text()
    assert by_section["Tests"] == ["python3 lab test -n 2"] and "\npython3 lab test -n 2\n" in ci


def test_every_link_to_a_file_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "lab").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.skipif(os.name == "nt", reason="a test of what git holds, run on Linux by CI")
def test_no_private_key_is_in_the_repository():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert "README.md" in files
    for name in files:
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        assert not re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]{40}", content), name

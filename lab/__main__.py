"""Practise ACME on this machine alone: a real CA, name servers, and an emulated Alibaba Cloud.

python3 lab demo    run every script in order against a lab of its own, and check each result from outside
python3 lab up      start the lab and stay, for the scripts typed in a second terminal; Ctrl-C ends it
python3 lab check   look at what you have done in that lab, step by step, and give hints; --watch goes on looking
python3 lab report  draw what a state folder's trace.jsonl tells, as one HTML file
python3 lab faults  list the faults that the lab can make: up --fault NAME; --matrix tries all of them
python3 lab bench   the scripts and other clients side by side: seconds, memory, requests (docs/performance.md)
python3 lab test    run the tests; what follows goes to pytest

The first call makes .venv, installs what is needed there, and finds Pebble or says how to get it.
"""

import argparse
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> int:
    """Prepare the machine, then run one command; the exit code is 0, 1 or 2."""
    # This file, unlike the rest, must be readable for an old Python, so that it can say this.
    if sys.version_info < (3, 10):  # noqa: UP036
        version = ".".join(str(number) for number in sys.version_info[:3])
        print("lab: Python 3.10 or newer is needed; this is Python " + version, file=sys.stderr)
        return 2
    # "python3 lab" puts the lab's own folder first in the path, where its modules would hide others.
    if not __package__:
        sys.path[0] = ROOT
    from lab import LabError

    try:
        return run(sys.argv[1:])
    except LabError as error:
        print("lab: " + str(error), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # A full disk, a folder that is not ours, a pipe that nobody reads any more.
        print("lab: " + str(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 1


def run(arguments: "list[str]") -> int:
    """Run the command that these arguments name."""
    from lab import bootstrap

    # pytest has options of its own, which argparse would take for unknown ones.
    if arguments[:1] == ["test"]:
        bootstrap.enter_virtual_environment(["requirements.txt", "tests/requirements.txt"], arguments)
        return test(bootstrap.ensure_pebble(), arguments[1:])
    options = parser().parse_args(arguments)
    if options.command == "faults":
        return list_or_try_faults(options.matrix, arguments)
    bootstrap.enter_virtual_environment(["requirements.txt"], arguments)
    if options.command == "check":
        from lab import check

        return check.run(options)
    if options.command == "report":
        from lab.page import report

        return report.run(options)
    bootstrap.ensure_pebble()
    if options.command == "demo":
        from lab import demo

        return demo.run(options)
    if options.command == "bench":
        from lab import bench

        return bench.run(options)
    from lab import up

    return up.run(options)


def test(pebble: str, arguments: "list[str]") -> int:
    """Run pytest on all tests, or on those that the arguments name."""
    import pytest

    os.environ["PEBBLE"] = pebble
    os.chdir(ROOT)
    return int(pytest.main(arguments))


def list_or_try_faults(matrix: bool, arguments: "list[str]") -> int:
    """Print the faults, or run every script against every one of them that it can meet."""
    from lab import bootstrap

    if matrix:
        bootstrap.enter_virtual_environment(["requirements.txt", "tests/requirements.txt"], arguments)
        return test(
            bootstrap.ensure_pebble(),
            ["tests/test_faults.py", "-k", "whatever_goes_wrong", "--matrix", "-n", "2"],
        )
    bootstrap.enter_virtual_environment(["requirements.txt"], arguments)
    from lab import faults

    try:
        print(faults.listed(), flush=True)
    except BrokenPipeError:
        # Who reads on with head has seen enough. Python must not fail over it once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line of all commands but test."""
    parser = argparse.ArgumentParser(
        prog="python3 lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="demo | up | check | report | faults | bench | test"
    )

    demo = commands.add_parser("demo", help="run every script, check each result from outside")
    demo.add_argument("--domains", metavar="NAMES", help="names for the certificate, comma separated")
    demo.add_argument("--keep", action="store_true", help="keep the folder with every file that was made")
    demo.add_argument("--quiet", action="store_true", help="print the table only")

    up = commands.add_parser("up", help="start the lab and stay until Ctrl-C")
    up.add_argument("--ca-port", type=port, default=14000, metavar="N", help="0: any free one")
    up.add_argument("--management-port", type=port, default=15000, metavar="N", help="0: any free one")
    up.add_argument(
        "--dns-port", type=port, nargs=2, default=[5301, 5302], metavar="N", help="0: any free one"
    )
    up.add_argument("--alibaba-port", type=port, default=5300, metavar="N", help="0: any free one")
    up.add_argument("--cdn-port", type=port, default=5443, metavar="N", help="0: any free one")
    up.add_argument("--apigateway-port", type=port, default=5444, metavar="N", help="0: any free one")
    up.add_argument(
        "--page-port", type=port, default=8300, metavar="N", help="the live picture, for a browser"
    )
    up.add_argument(
        "--lag", type=seconds, nargs=2, default=[0.0, 0.0], metavar="S", help="how late each name server is"
    )
    up.add_argument(
        "--nonce-reject", type=percent, default=0, metavar="P", help="percent of good nonces refused"
    )
    up.add_argument(
        "--va-sleep", type=int, default=0, metavar="S", help="the CA waits up to S seconds to validate"
    )
    up.add_argument("--authz-reuse", type=percent, default=0, metavar="P", help="percent reused")
    up.add_argument("--chain-length", type=int, default=1, metavar="N", help="intermediate CAs")
    up.add_argument("--alternate-roots", type=int, default=0, metavar="N", help="alternate chains")
    up.add_argument("--strict", action="store_true", help="Pebble refuses what a later version will refuse")
    up.add_argument(
        "--fault", action="append", default=[], metavar="NAME", help="a fault; python3 lab faults lists them"
    )
    up.add_argument(
        "--fault-seed", type=int, default=0, metavar="N", help="what decides where faults by chance strike"
    )
    up.add_argument("--directory", metavar="DIR", help="where lab.ini and the state go, else the repository")

    check = commands.add_parser("check", help="look at what you have done in the lab, and give hints")
    check.add_argument(
        "exercise", nargs="?", help="one of lab/exercises, such as 05-break, in place of the steps"
    )
    check.add_argument("answer", nargs="*", help="what you predict, for an exercise such as 05-predict")
    check.add_argument("--watch", action="store_true", help="go on looking until Ctrl-C")
    check.add_argument("--directory", metavar="DIR", help="where lab.ini is, else the repository")

    report = commands.add_parser("report", help="draw what a state folder's trace tells, as one HTML file")
    report.add_argument("state", metavar="STATE", help="the folder that [files] directory names")
    report.add_argument("-o", dest="output", metavar="FILE", help="else STATE/report.html")

    faults = commands.add_parser("faults", help="list the faults that the lab can make")
    faults.add_argument(
        "--matrix", action="store_true", help="try each script with each fault, and print what held"
    )

    bench = commands.add_parser(
        "bench", help="the scripts and other clients, side by side: seconds and counts"
    )
    bench.add_argument("--condition", action="append", metavar="NAME", help="loopback, distance, slow-dns")
    bench.add_argument("--names", type=int, action="append", metavar="N", help="names in the certificate")
    bench.add_argument(
        "--client", action="append", metavar="NAME", help="a client; an unknown one lists them"
    )
    bench.add_argument(
        "--runs", type=int, default=3, metavar="N", help="runs of each, in turns; the median counts"
    )
    bench.add_argument("--limit", type=seconds, default=180.0, metavar="S", help="the longest run")
    bench.add_argument("--json", metavar="FILE", help="every figure, for machines; adds to what it holds")
    bench.add_argument("--svg", metavar="FILE", help="a picture of where the time goes")
    bench.add_argument("--scale", action="store_true", help="instead: 11_renew.py over many settings files")

    commands.add_parser("test", help="run the tests; what follows goes to pytest", add_help=False)
    return parser


def port(text: str) -> int:
    """A port that needs no root; 0 is any free one."""
    number = int(text)
    if number != 0 and not 1024 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port from 1024 to 65535, or 0 for any")
    return number


def percent(text: str) -> int:
    """A whole number from 0 to 100."""
    number = int(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 100")
    return number


def seconds(text: str) -> float:
    """A number of seconds, from 0."""
    number = float(text)
    if not 0 <= number < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return number


if __name__ == "__main__":
    sys.exit(main())

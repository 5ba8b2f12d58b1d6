"""Run programs one after another, and write what each took, as JSON: measure.py RESULT PROGRAM ARGUMENT… [, PROGRAM …]

A program of its own, and a small one: what Linux calls the peak memory of a child begins with that of its parent.
"""

import json
import os
import sys
import time


def main() -> None:
    result, *words = sys.argv[1:]
    runs = []
    for command in split(words):
        began = time.monotonic()
        process = os.posix_spawnp(command[0], command, os.environ)
        _, status, usage = os.wait4(process, 0)
        runs.append(
            {
                "began": began,
                "ended": time.monotonic(),
                "cpu": usage.ru_utime + usage.ru_stime,
                # Of the program, or of the largest that it started and waited for; ru_maxrss is in KiB.
                "peak": usage.ru_maxrss * 1024,
                "code": os.waitstatus_to_exitcode(status),
            }
        )
        if runs[-1]["code"]:
            break
    with open(result, "w", encoding="utf-8") as file:
        json.dump(runs, file)


def split(words: list[str]) -> list[list[str]]:
    """The commands in a list in which "," stands between them."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word == ",":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


if __name__ == "__main__":
    main()

"""Many calls of AddDomainRecord, over some connections side by side: load.py TASK CALLS CONNECTIONS."""

import json
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minimal import call, connect  # beside this file, as it is run


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    calls, connections = int(sys.argv[2]), int(sys.argv[3])
    trust = ssl.create_default_context(cafile=task["ca_bundle"])

    def work(worker: int) -> None:
        cloud = connect(task["alibaba"], trust)
        for number in range(worker, calls, connections):
            rr = f"load{number}"
            call(cloud, task, Action="AddDomainRecord", DomainName=task["zone"], RR=rr, Type="TXT", Value="x")

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(work, range(connections)))


if __name__ == "__main__":
    main()

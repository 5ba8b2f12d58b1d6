"""Run certbot or sewer, pointed at the lab where no setting of theirs can: pointed.py certbot|sewer ARGUMENT…

$LAB_DIRECTORY is the CA's directory, $LAB_ALIBABA the address of the emulated cloud.
"""

import importlib
import os
import sys
from typing import Any


def main() -> None:
    name = sys.argv.pop(1)
    if name == "certbot":
        plugin: Any = importlib.import_module("certbot_dns_aliyun.alidns")
        plugin.API_ENDPOINT = f"https://{os.environ['LAB_ALIBABA']}/"
        sys.exit(importlib.import_module("certbot.main").main())
    configuration: Any = importlib.import_module("sewer.config")
    configuration.ACME_DIRECTORY_URL_STAGING = os.environ["LAB_DIRECTORY"]
    # sewer leaves the SDK at its defaults: plain HTTP to alidns.aliyuncs.com. The emulator takes HTTPS only.
    request = importlib.import_module("aliyunsdkcore.request")
    request.set_default_protocol_type(importlib.import_module("aliyunsdkcore.http.protocol_type").HTTPS)
    make = request.RpcRequest.__init__

    def make_pointed(self: object, *arguments: object, **options: object) -> None:
        make(self, *arguments, **options)
        self.set_endpoint(os.environ["LAB_ALIBABA"])  # type: ignore[attr-defined]

    request.RpcRequest.__init__ = make_pointed
    sys.exit(importlib.import_module("sewer.cli").main())


if __name__ == "__main__":
    main()

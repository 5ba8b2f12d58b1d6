"""An emulator of Alibaba Cloud APIs: AliDNS 2015-01-09, CDN 2018-05-10, API Gateway 2016-07-14, STS 2015-04-01."""

from .cloud import Call, Cloud
from .errors import ApiError
from .gateway import Gateway
from .ram import AccessKey

__all__ = ["AccessKey", "ApiError", "Call", "Cloud", "Gateway"]

"""What every script shares: the mechanics of JWS, ACME transport, settings, Alibaba Cloud calls, DNS and X.509.

No module here knows an ACME payload; those are in the numbered scripts, where a reader can see them.
"""

"""Install the certificate on Alibaba Cloud CDN, and see each domain serve it.

Call    Cdn SetCdnDomainSSLCertificate, DescribeDomainCertificateInfo
RFC     8446, 6066 section 3 (the handshake that proves it)
Reads   state/fullchain.pem, state/certificate.key; acme.ini: [cdn], [alibaba]
Writes  nothing here
Run     python 07_install_cdn.py
Lab     docs/labs/07.md, 10 minutes; promised in part 1
Next    08_install_apigw.py
"""

from aliyunsdkcdn.request.v20180510.DescribeDomainCertificateInfoRequest import (
    DescribeDomainCertificateInfoRequest,
)
from aliyunsdkcdn.request.v20180510.SetCdnDomainSSLCertificateRequest import SetCdnDomainSSLCertificateRequest

from common import alibaba, config, install, show, x509


def set_certificate(cdn: alibaba.Client, domain: str, pair: install.KeyPair) -> None:
    """Hand certificate and key to the CDN. The answer only says that it has them.

    https://www.alibabacloud.com/help/en/cdn/developer-reference/api-cdn-2018-05-10-setcdndomainsslcertificate
    """
    parameters = {
        "DomainName": domain,
        "SSLProtocol": "on",
        "CertType": "upload",
        "CertName": pair.name_for(domain),
        "SSLPub": pair.chain_pem,
        "SSLPri": pair.private_key_pem,
    }
    cdn.call(SetCdnDomainSSLCertificateRequest, parameters)


def shows_certificate(cdn: alibaba.Client, domain: str, pair: install.KeyPair, brief: bool = False) -> bool:
    """Whether the CDN says that this certificate is the domain's."""
    answer = cdn.call(DescribeDomainCertificateInfoRequest, {"DomainName": domain}, brief)
    for info in answer.objects("CertInfos", "CertInfo"):
        pem = info.text("ServerCertificate", "")
        if info.get("ServerCertificateStatus") == "on" and pem:
            return pair.is_in(pem, domain)
    return False


def still_missing(cdn: alibaba.Client, domain: str, pair: install.KeyPair) -> str | None:
    """Hand certificate and key over; None when the CDN has them, or why it does not take them yet."""
    try:
        set_certificate(cdn, domain, pair)
    except alibaba.ApiError as error:
        if error.code != "ServiceBusy":
            raise
        # It takes one change of a domain at a time. This may be the one it is at work on, if an answer was lost.
        if not shows_certificate(cdn, domain, pair, brief=True):
            return "it is at work on the last change still"
    return None


def main(settings: config.Settings) -> None:
    domains = settings.need("cdn", "domains")
    # Key, dates and names are checked before the first call: the CDN would take a certificate that nobody trusts.
    pair = install.load_key_pair(settings.state, domains)
    cdn = alibaba.connect(settings, "cdn")

    def hand_over(domain: str) -> None:
        show.step(f"{domain}: the certificate it has", "Cdn DescribeDomainCertificateInfo")
        if shows_certificate(cdn, domain, pair):
            show.facts(certificate="this one already")
            return
        show.step(f"{domain}: the new certificate", "Cdn SetCdnDomainSSLCertificate")
        install.wait_until(f"the CDN to take it for {domain}", lambda: still_missing(cdn, domain, pair))

    def read_back(domain: str) -> None:
        show.step(f"{domain}: read back", "Cdn DescribeDomainCertificateInfo")
        install.wait_until(
            f"the CDN to show it for {domain}",
            lambda: None if shows_certificate(cdn, domain, pair, brief=True) else "it shows another one",
        )

    def connect(domain: str) -> None:
        # The API's word is one thing; what a browser gets is another.
        show.step(f"{domain}: TLS handshake", "RFC 8446, RFC 6066 section 3 (SNI)")
        install.wait_until_served(domain, pair, settings.cdn.verify_at)
        show.result(f"{domain} {x509.serial_hex(pair.leaf)}")

    install.for_each(domains, hand_over, read_back, connect)
    show.next_step("08_install_apigw.py")


if __name__ == "__main__":
    config.run(main, __doc__)

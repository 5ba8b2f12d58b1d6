"""Install the certificate on Alibaba Cloud API Gateway, and see each domain serve it.

Call    CloudAPI SetDomainCertificate, DescribeDomain
RFC     8446, 6066 section 3 (the handshake that proves it)
Reads   state/fullchain.pem, state/certificate.key; acme.ini: [apigateway], [alibaba]
Writes  nothing here
Run     python 08_install_apigw.py
Lab     docs/labs/08.md, 10 minutes; promised in part 1
Next    09_revoke.py (only when the certificate must no longer be trusted), or 10_pkcs12_iis.py
"""

from aliyunsdkcloudapi.request.v20160714.DescribeDomainRequest import DescribeDomainRequest
from aliyunsdkcloudapi.request.v20160714.SetDomainCertificateRequest import SetDomainCertificateRequest

from common import alibaba, config, install, show, x509


def set_certificate(gateway: alibaba.Client, group_id: str, domain: str, pair: install.KeyPair) -> None:
    """Hand certificate and key to a domain that is bound to an API group.

    https://www.alibabacloud.com/help/en/api-gateway/developer-reference/api-cloudapi-2016-07-14-setdomaincertificate
    """
    parameters = {
        "GroupId": group_id,
        "DomainName": domain,
        "CertificateName": pair.name_for(domain),
        "CertificateBody": pair.chain_pem,
        "CertificatePrivateKey": pair.private_key_pem,
    }
    gateway.call(SetDomainCertificateRequest, parameters)


def shows_certificate(
    gateway: alibaba.Client, group_id: str, domain: str, pair: install.KeyPair, brief: bool = False
) -> bool:
    """Whether API Gateway says that this certificate is the domain's. (Its answer holds the private key too.)"""
    answer = gateway.call(DescribeDomainRequest, {"GroupId": group_id, "DomainName": domain}, brief)
    return pair.is_in(answer.text("CertificateBody", ""), domain)


def main(settings: config.Settings) -> None:
    group_id, domains = settings.need("apigateway", "group_id"), settings.need("apigateway", "domains")
    pair = install.load_key_pair(settings.state, domains)
    gateway = alibaba.connect(settings, "apigateway")

    def hand_over(domain: str) -> None:
        show.step(f"{domain}: the certificate it has", "CloudAPI DescribeDomain")
        if shows_certificate(gateway, group_id, domain, pair):
            show.facts(certificate="this one already")
            return
        show.step(f"{domain}: the new certificate", "CloudAPI SetDomainCertificate")
        set_certificate(gateway, group_id, domain, pair)

    def read_back(domain: str) -> None:
        show.step(f"{domain}: read back", "CloudAPI DescribeDomain")
        install.wait_until(
            f"API Gateway to show it for {domain}",
            lambda: (
                None
                if shows_certificate(gateway, group_id, domain, pair, brief=True)
                else "it shows another one"
            ),
        )

    def connect(domain: str) -> None:
        show.step(f"{domain}: TLS handshake", "RFC 8446, RFC 6066 section 3 (SNI)")
        install.wait_until_served(domain, pair, settings.apigateway.verify_at)
        show.result(f"{domain} {x509.serial_hex(pair.leaf)}")

    install.for_each(domains, hand_over, read_back, connect)
    show.next_step("09_revoke.py (only when the certificate must no longer be trusted), or 10_pkcs12_iis.py")


if __name__ == "__main__":
    config.run(main, __doc__)

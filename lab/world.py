"""The small world that the lab begins with: zones, CDN domains, an API group and a learner's access key."""

from typing import TYPE_CHECKING, NamedTuple

from lab.nameserver import SERVER_NAMES

if TYPE_CHECKING:
    from lab.alibaba import AccessKey, Cloud

LEARNER = "learner"
PARTNER = "partner"
REGION = "cn-hangzhou"

# One certificate shows it all: an apex and its wildcard (two TXT values at one name), a zone under a suffix
# of two labels, and a delegated sub-zone.
CERTIFICATE_DOMAINS = ("example.test", "*.example.test", "shop.workshop.com.test", "www.dev.example.test")
CDN_DOMAINS = ("www.example.test", "static.example.test")
APIGATEWAY_DOMAINS = ("api.example.test",)


class World(NamedTuple):
    """What was made that a person needs to know."""

    access_key: "AccessKey"
    group_id: str


def seed(cloud: "Cloud") -> World:
    """Fill an empty cloud."""
    _seed_zones(cloud)
    # Alibaba's CDN writes a wildcard domain with a dot for the star.
    for domain in (*CDN_DOMAINS, ".wild.example.test"):
        cloud.cdn.add_domain(domain, account=LEARNER)
    group_id = cloud.apigateway.add_group("demo", account=LEARNER, region=REGION)
    for domain in APIGATEWAY_DOMAINS:
        cloud.apigateway.bind_domain(group_id, domain)
    return World(cloud.ram.add_access_key(account=LEARNER), group_id)


def _seed_zones(cloud: "Cloud") -> None:
    zones = ["example.test", "dev.example.test", "workshop.com.test"]
    # Enough zones that DescribeDomains has more than one page.
    zones += [f"zone{number:02}.test" for number in range(1, 41)]
    for zone in zones:
        cloud.dns.add_zone(zone, account=LEARNER, dns_servers=SERVER_NAMES)
    cloud.dns.add_zone("partner.test", account=PARTNER, dns_servers=SERVER_NAMES)

    # Records that were there before and must survive every clean-up, one of them just where dns-01 looks.
    for rr in ("@", "www", "static", "api"):
        cloud.dns.add_record("example.test", rr=rr, type="A", value="127.0.0.1", ttl=600)
    cloud.dns.add_record("example.test", rr="@", type="MX", value="mail.example.test", ttl=600)
    cloud.dns.add_record(
        "example.test", rr="_acme-challenge", type="TXT", value="left-here-by-another-program", ttl=600
    )
    for server in SERVER_NAMES:
        cloud.dns.add_record("example.test", rr="dev", type="NS", value=server, ttl=600)
    cloud.dns.add_record("dev.example.test", rr="www", type="A", value="127.0.0.1", ttl=600)
    cloud.dns.add_record("workshop.com.test", rr="shop", type="A", value="127.0.0.1", ttl=600)
    # Somebody else's zone, whose validation was handed to the learner by a CNAME.
    cloud.dns.add_record(
        "partner.test",
        rr="_acme-challenge.www",
        type="CNAME",
        value="partner.validation.example.test",
        ttl=600,
    )

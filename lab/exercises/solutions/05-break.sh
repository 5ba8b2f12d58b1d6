rm lab-state/pending/order.json
python 04_new_order.py
cat > too_early.py <<'END'
import importlib
from pathlib import Path

from common import acme, config

step_05 = importlib.import_module("05_dns_challenge")
settings = config.load(Path("lab.ini"))
saved = settings.state.read_json("pending/order.json", "04_new_order.py")

ca = acme.account_client(settings)
order = ca.post_as_get(saved["order_url"]).body
for challenge in step_05.pending_challenges(ca, order["authorizations"]):
    step_05.respond(ca, challenge)
ca.poll(saved["order_url"], lambda order: order["status"] != "pending", "CA to look")
END
python too_early.py
python 05_dns_challenge.py   # no: one look that fails makes the order invalid, for good
python 04_new_order.py       # a new order, with new challenges
python 05_dns_challenge.py
python3 lab check 05-break

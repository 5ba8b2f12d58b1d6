rm lab-state/pending/order.json
python 05_dns_challenge.py   # it knows of no order
python 04_new_order.py       # a second one; the first stays at the CA until it expires, and counts in its limits
python3 lab check 04-break

python 02_create_cert_key_csr.py
python 04_new_order.py   # the note says that it is of no use
sed -i.bak 's/"status": "deactivated"/"status": "valid"/' lab-state/account.json
python 04_new_order.py   # unauthorized: the CA decides, and its word is for good
mv lab-state/account.json.bak lab-state/account.json
python3 lab check 13-break

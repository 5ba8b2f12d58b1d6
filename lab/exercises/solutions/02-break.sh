cp lab-state/account.key lab-state/pending/certificate.key
python 02_create_cert_key_csr.py   # refused: RFC 8555 section 11.1
rm lab-state/pending/certificate.key
python 02_create_cert_key_csr.py
python3 lab check 02-break

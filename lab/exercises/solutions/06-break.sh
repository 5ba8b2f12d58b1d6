python 02_create_cert_key_csr.py
python 04_new_order.py
python 05_dns_challenge.py
sed -i.bak 's/ shop.workshop.com.test,//' lab.ini
python 02_create_cert_key_csr.py
python 06_finalize.py   # refused: the CSR must have exactly the names of the order (RFC 8555 section 7.4)
mv lab.ini.bak lab.ini
python 02_create_cert_key_csr.py
python 06_finalize.py
python3 lab check 06-break

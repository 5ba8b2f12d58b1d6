python 02_create_cert_key_csr.py
# *.example.test stands for exactly one label before .example.test; example.test itself is there by its own name.
python3 lab check 02-predict example.test www.example.test shop.workshop.com.test

python 05_dns_challenge.py
# *.example.test is proven at _acme-challenge.example.test, as example.test is: two values at one name.
python3 lab check 05-predict 3

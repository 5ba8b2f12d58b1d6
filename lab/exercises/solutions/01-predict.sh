python 01_create_account_key.py
# 64 characters tell 6 bits each. 32 octets are 256 bits: 42 whole characters, and 4 bits for a last one.
python3 lab check 01-predict 43

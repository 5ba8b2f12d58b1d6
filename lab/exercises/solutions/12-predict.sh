python 03_new_account.py --info
python 12_change_account_key.py
# The account keeps its URL, its orders and its certificates. The thumbprint is the key's.
python3 lab check 12-predict thumbprint

mv lab-state/account.key my.key
python 01_create_account_key.py
python 03_new_account.py --find   # accountDoesNotExist: an account belongs to a key, and to nothing else
mv my.key lab-state/account.key
python3 lab check 03-break

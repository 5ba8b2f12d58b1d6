python 03_new_account.py
python 03_new_account.py
# The key has an account already: nothing is created, and the Location is that account's URL.
python3 lab check 03-predict 200

head -c 100 lab-state/account.key > half.key
mv half.key lab-state/account.key
python 01_create_account_key.py   # refused: whoever loses the account's key loses the account, so 01 never writes over it
rm lab-state/account.key
python 01_create_account_key.py
python3 lab check 01-break

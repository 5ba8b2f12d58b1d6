mv lab-state/account.key lab-state/pending/account.key
cp lab-state/history/account-*.key lab-state/account.key
# It asks the CA whether it has an account for the key in pending/ (onlyReturnExisting), and goes on from there.
python 12_change_account_key.py
python3 lab check 12-break

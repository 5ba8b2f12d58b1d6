python 13_deactivate_account.py --yes
# The account was needed to get it, and is not needed to use it. Revoke before, what must not be used any more.
python3 lab check 13-predict valid

python 09_revoke.py --reason superseded
# The CA says so to those who ask the CA. The server was not asked, and not told.
python3 lab check 09-predict yes

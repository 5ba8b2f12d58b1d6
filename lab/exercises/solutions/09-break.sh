mkdir lost
mv lab-state/account.key lab-state/account.json lost
python 09_revoke.py   # there is no account
python 09_revoke.py --with-certificate-key   # signed with "jwk", the certificate's own; the answer: alreadyRevoked
mv lost/account.key lost/account.json lab-state
python3 lab check 09-break

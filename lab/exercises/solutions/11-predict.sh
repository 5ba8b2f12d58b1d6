python 11_renew.py
python 11_renew.py
# One more than before. The first run replaced what was revoked; the second had nothing to do, and did nothing.
python3 lab check 11-predict "$(ls -d lab-state/history/*/ | wc -l)"

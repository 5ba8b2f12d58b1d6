python 06_finalize.py
# Yours, and the intermediate's. To send the root is of no use: who does not have it already cannot trust it.
python3 lab check 06-predict 2

python 10_pkcs12_iis.py
# The whole chain, as in fullchain.pem: Windows sends the intermediate along only if it has it.
python3 lab check 10-predict 2

python 07_install_cdn.py
# A certificate is good for a name wherever that is; it is served only where somebody put it.
python3 lab check 07-predict www.example.test static.example.test

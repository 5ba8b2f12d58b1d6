python 08_install_apigw.py
# The private key. So who may call DescribeDomain has the key of every domain: see docs/ram-policies.md.
python3 lab check 08-predict CertificatePrivateKey

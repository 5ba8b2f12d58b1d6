mv lab-state/certificate.key my.key
cp lab-state/account.key lab-state/certificate.key
python 10_pkcs12_iis.py   # refused: the certificate has a public key in it, and this key's is another one
rm lab-state/certificate.key
mv my.key lab-state/certificate.key
python 10_pkcs12_iis.py
python3 lab check 10-break

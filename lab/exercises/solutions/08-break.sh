sed -i.bak 's/^access_key_secret = /&x/' .lab/credentials.ini
python 08_install_apigw.py   # SignatureDoesNotMatch: the secret signs the call, and the service does the same and compares
mv .lab/credentials.ini.bak .lab/credentials.ini
python 08_install_apigw.py
python3 lab check 08-break

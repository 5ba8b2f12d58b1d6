sed -i.bak 's/^domains = www.example.test, static.example.test/&, later.example.test/' lab.ini
python 11_renew.py --force
python 11_renew.py           # it waits: what failed a moment ago would fail again, and a CA counts what it is asked
mv lab.ini.bak lab.ini
python 11_renew.py --force   # a person has mended it, and says so
python3 lab check 11-break

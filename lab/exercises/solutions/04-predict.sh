python 04_new_order.py
# One for each name. To control example.test is not to control every name below it, so the wildcard has its own.
python3 lab check 04-predict 4

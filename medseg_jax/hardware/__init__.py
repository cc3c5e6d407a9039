"""Hardware that is not there: what it can do, and what a program does on it.

`chips.py` has the numbers of each chip and `topologies.py` its devices, for the
compiler. `hlo.py` reads the text that the compiler wrote, `costs.py` counts in
it (by `products.py`, `traffic.py` and `collectives.py`), `roofline.py` says how
long that takes at least, and `table.py` prints it all.
"""

"""Chaos: a grid of short trials runs while what it runs on is killed, frozen, filled up and torn apart, from a seed.

`python -m tests.chaos --backend local --faults 50 --seed 1` runs rounds until that many faults have been injected. A
round is a new run folder, a launch, faults at random moments, repairs, and another launch. It holds when every trial
is done, the rows are complete, unique and bit for bit those of an undisturbed run, and nothing of ours is left behind.

With --light the trials only pretend to train (see light/sitecustomize.py): the store, the workers and the backends meet
several times as many faults a minute, but training, its checkpoints and its resumption meet none. Counted apart.
"""

import os

os.environ.setdefault("STDAC_LEASE_S", "6")  # before stdac.leases is imported: a frozen worker is given up soon

"""On PYTHONPATH with STDAC_TOYS set, the tests' methods are among the project's, in every process."""

import os
import sys

if "STDAC_TOYS" in os.environ and any("cluster_jobs" in word or "submitit" in word for word in sys.orig_argv):
    from stdac.methods import METHODS
    from tests.toys.follower import FOLLOWER, SLOW_TOY
    from tests.toys.toy import TOY

    METHODS |= {"toy": TOY, "slow-toy": SLOW_TOY, "follower": FOLLOWER}

"""On PYTHONPATH, this makes every trial a no-op that sleeps STDAC_SLEEP_S seconds: what is left is our own cost.

Everything else is real: workers, claims, leases, rows, done.json. torch is not imported, so that a worker starts fast.
"""

import os
import sys
import time
import types
from typing import Any


def run_trial(trial: Any, folder: Any, *, observer: Any, **_: Any) -> bool:
    """In the place of `stdac.run.run_trial`."""
    from stdac.record import make_metrics
    from stdac.trial import SCHEMA_VERSION

    folder.create(trial)
    attempt = folder.claim({})
    if attempt is None:
        return False
    with attempt:
        observer.on_claim(attempt)
        time.sleep(float(os.environ["STDAC_SLEEP_S"]))
        keys = {key: trial[key] for key in ("method", "dataset", "seed")}
        row = {"trial_id": folder.path.name, **keys, "phase": "cluster", "epoch": 0, "schema_version": SCHEMA_VERSION}
        attempt.write_table("metrics.parquet", make_metrics([row]))
        attempt.finish({"seconds": 0.0, "device": "none", "trial_id": folder.path.name})
    return True


def stand_in(name: str, **names: Any) -> None:
    """Put a module with these names where `import name` finds it."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(names)


if "STDAC_SLEEP_S" in os.environ and "cluster_jobs.worker" in sys.orig_argv:
    stand_in("stdac.run", run_trial=run_trial)
    stand_in("stdac.machine", Machine=lambda *_, **__: None)
    stand_in("stdac.methods", resolve=lambda trial: trial)

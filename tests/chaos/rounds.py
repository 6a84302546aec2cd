"""A round: a run, faults at random moments, repairs, another launch, and the judgement."""

import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from stdac.leases import LEASE_S
from tests.chaos.clusters import Cluster
from tests.chaos.faults import COMMON
from tests.chaos.oracle import Oracle, Violation
from tests.chaos.scene import Command, Scene

ROUND_FAULTS = 24  # at most, so that the run gets somewhere
TOGETHER = 0.15  # the chance that a fault is followed by another at once
IDLE = 0.04  # how fast time goes, for faults, while no trial runs: nearly all shall hit one
TICK_S = 0.2
QUIET_S = 100.0  # processes that have to end must have done so by then; agents of Ray may take a minute
END_S = 900.0  # a run without faults must have ended by then
LAUNCHES = 3  # and take no more launches than this


class Round:
    """One run folder from its first launch to the judgement."""

    def __init__(
        self, cluster: Cluster, scene: Scene, oracle: Oracle, budget: int, pause_s: float, say: Callable[[str], None]
    ) -> None:
        self.cluster, self.scene, self.oracle, self.say = cluster, scene, oracle, say
        self.budget, self.pause_s = min(budget, ROUND_FAULTS), pause_s
        self.kinds: Counter[str] = Counter()
        self.chance = scene.chance
        self.ended: set[Command] = set()

    def run(self) -> None:
        """Run it. Raises Violation where something does not hold."""
        self.disturb()
        self.mend()
        for trial_id in self.oracle.heal():
            self.say(f"the damaged result of trial {trial_id} is put aside, it runs again")
        if self.cluster.end_with_driver() and self.chance.random() < 0.5:
            self.orphan()
        self.finish()
        self.await_quiet("after the last launch")
        self.oracle.judge()
        self.look_for_surprises()
        time.sleep(LEASE_S + 1)  # until then the doctor takes leases and temporary files for somebody's
        findings = Counter(self.oracle.clear_away())
        attempts, scored, epochs = self.oracle.work()
        left = ", ".join(f"{n} × {what}" for what, n in findings.most_common()) or "nothing"
        self.say(f"held: {attempts} attempts, {scored} epochs scored for {epochs}; the doctor found {left}")
        for error, count in self.oracle.tracebacks().items():
            self.say(f"{count} × a traceback in the workers' logs: {error}")

    def disturb(self) -> None:
        """Faults, until the budget is used up or the run is over."""
        left = self.chance.uniform(0, 2 * self.pause_s)
        while self.kinds.total() < self.budget and not self.over():
            began = time.monotonic()
            if not self.scene.launches():
                self.say(str(self.scene.launch()))
            self.step()
            if left <= 0:
                self.inject()
                left = 0.0 if self.chance.random() < TOGETHER else self.chance.uniform(0.3, 2 * self.pause_s)
            left -= (time.monotonic() - began) * (1 if self.scene.trials("running") else IDLE)

    def step(self) -> None:
        """Look after the run for a moment."""
        for command in self.scene.commands:
            if command.over() and command not in self.ended:
                self.ended.add(command)
                self.say(str(command))
        for what in self.scene.undo():
            self.say(what)
        self.oracle.look()
        time.sleep(TICK_S)

    def over(self) -> bool:
        """Whether every trial is done."""
        return len(self.oracle.done.keys() | self.scene.spoiled) == len(self.oracle.expected)

    def inject(self) -> None:
        """One fault of a random kind, among those that find a victim."""
        faults = self.cluster.faults()
        for kind in sorted(faults, key=lambda kind: -(self.chance.random() ** (1 / COMMON.get(kind, 1)))):
            victim = None
            with suppress(OSError):  # what it was to happen to has vanished meanwhile, or cannot be written now
                victim = faults[kind](self.scene)
            if victim is not None:
                self.kinds[kind] += 1
                self.say(f"fault {self.kinds.total():2} {kind}: {victim}")
                return

    def mend(self) -> None:
        """Undo what can be undone: disks are freed, processes go on, nodes come back."""
        for what in self.scene.undo(everything=True):
            self.say(what)
        self.cluster.mend()

    def orphan(self) -> None:
        """Kill all drivers. Raises Violation where a worker lives on without."""
        drivers = self.scene.processes("launch", "work")
        self.say(f"all drivers are killed ({len(drivers)}), their workers must end")
        for driver in drivers:
            driver.signal(signal.SIGKILL)
        self.await_quiet("after all drivers were killed")

    def await_quiet(self, when: str) -> None:
        """Wait until nothing of the run is left. Raises Violation where something stays."""
        deadline = time.monotonic() + self.cluster.quiet_s
        while left := self.cluster.left(self.scene):
            if time.monotonic() > deadline:
                raise Violation(f"still there {when}: {'; '.join(left)}")
            self.step()

    def finish(self) -> None:
        """Launch until all is done. Raises Violation where that takes too long, or too many launches."""
        deadline = time.monotonic() + END_S
        for _ in range(LAUNCHES):
            if not self.scene.launches():
                self.say(f"{self.scene.launch()}, without faults")
            launch = self.scene.launches()[-1]
            while self.scene.launches():
                self.step()
                if time.monotonic() > deadline:
                    raise Violation(f"the run has not ended after {END_S:.0f} s without faults")
            if launch.process.returncode == 0:
                return
        raise Violation(f"{LAUNCHES} launches without faults were not enough: {launch}")

    def look_for_surprises(self) -> None:
        """Raise Violation where a command has shown its user an error that is not one of ours."""
        for command in self.scene.commands:
            said = command.log.read_text(errors="replace")
            if "Traceback" in said or "(unexpected: " in said:
                raise Violation(f"a user was left alone with an error of {command}: {said}")

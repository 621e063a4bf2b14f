"""The workers of a cluster as its scheduler sees them: which exist and which have stopped answering."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LOOK_SECONDS = 1.0


@dataclass(slots=True)
class _Member:
    heard: float  # time of the last heartbeat, by the scheduler's clock
    changed: float  # when that time last changed, by this process' clock


@dataclass(slots=True)
class Roster:
    """The workers of a cluster, updated at most once per second.

    ``identity()``: the scheduler's. ``patience``: seconds without a heartbeat after which a worker counts as frozen.
    Ages are measured by this process' clock only, because the clocks of machines may differ. ``say`` is called with
    messages that people may want to act on.
    """

    identity: Callable[[], dict[str, Any]]
    patience: float
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _members: dict[str, _Member] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)
    _looked: float | None = None

    def look(self) -> None:
        """Update the roster, unless that was done less than a second ago (longer in a cluster of hundreds)."""
        now = self.clock()
        if self._looked is not None and now - self._looked < max(_LOOK_SECONDS, len(self._members) / 100):
            return
        workers = self.identity()["workers"]
        self._looked = now
        known, self._members = self._members, {}
        for address, worker in workers.items():
            heard = float(worker["last_seen"])
            before = known.get(address)
            still = before is not None and before.heard == heard
            self._members[address] = before if still and before is not None else _Member(heard, now)
        self._report()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def frozen(self) -> set[str]:
        """Return the addresses of workers from which the scheduler hasn't heard for too long."""
        now = self.clock()
        return {address for address, member in self._members.items() if now - member.changed > self.patience}

    @property
    def awake(self) -> list[str]:
        """Return the addresses of the other workers, sorted."""
        return sorted(self._members.keys() - self.frozen)

    def _report(self) -> None:
        frozen = self.frozen
        for address in sorted(frozen - self._reported):
            self.say(
                f"worker {address} hasn't answered for {self.patience:g} seconds: its tasks are also run elsewhere"
            )
        if not self._members and "" not in self._reported:
            self.say("the cluster has no workers: waiting for one")
        self._reported = frozen if self._members else {""}

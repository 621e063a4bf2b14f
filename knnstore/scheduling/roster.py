"""The workers of a cluster as its scheduler sees them: who there is, who has stopped answering, who is busy."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LOOK_SECONDS = 1.0


@dataclass(slots=True)
class _Member:
    heard: float  # the scheduler's time of the last heartbeat
    changed: float  # our time when we saw that change


@dataclass(slots=True)
class Roster:
    """The workers, looked at no more than once a second.

    ``identity()`` is the scheduler's. ``patience``: seconds without a heartbeat after which a worker counts as frozen.
    Ages are told by this process' clock alone, since the machines' clocks may differ. ``say`` is told of what a person
    may want to act on.
    """

    identity: Callable[[], dict[str, Any]]
    patience: float
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _members: dict[str, _Member] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _looked: float | None = None

    def look(self) -> None:
        """See who is there, unless that was less than a second ago (or longer, in a cluster of hundreds)."""
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
        self._tell()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def frozen(self) -> set[str]:
        """Addresses of workers that the scheduler counts among its own but hasn't heard of for too long."""
        now = self.clock()
        return {address for address, member in self._members.items() if now - member.changed > self.patience}

    @property
    def awake(self) -> list[str]:
        """Addresses of the others, in a fixed order."""
        return sorted(self._members.keys() - self.frozen)

    def _tell(self) -> None:
        frozen = self.frozen
        for address in sorted(frozen - self._told):
            self.say(f"worker {address} hasn't answered for {self.patience:g} seconds: its tasks run elsewhere as well")
        if not self._members and "" not in self._told:
            self.say("the cluster has no worker: waiting for one")
        self._told = frozen if self._members else {""}

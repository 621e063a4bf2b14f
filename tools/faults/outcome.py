"""The outcome of a fault-injection test."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Outcome:
    """Numbers of cases: ``tried``; ``lost``, with wrong bytes or an unreported failure; ``silent``, wrong answers."""

    name: str
    tried: int = 0
    lost: int = 0
    silent: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    facts: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[what] += int(number)

    def fact(self, what: str, number: int) -> None:
        """Record a property of the test, which is the same in all parts of a run."""
        self.facts[what] = int(number)

    def add(self, other: dict[str, Any]) -> None:
        """Add the outcome of another part of the run, from its line of JSON."""
        self.tried += other["tried"]
        self.lost += other["lost"]
        self.silent += other["silent"]
        self.counts.update(other["counts"])
        self.facts |= other["facts"]
        self.told += other["told"]

    def lose(self, story: str) -> None:
        """Record a failed case."""
        self.lost += 1
        self.told.append(story)

    def text(self) -> str:
        """Return the outcome as text."""
        lines = [f"  {story}" for story in self.told[:20]]
        tally = ", ".join(f"{number:,} {what}" for what, number in (self.facts | self.counts).items())
        lines.append(f"{self.name}: {self.tried:,} tried, {self.lost} lost, {self.silent} silent ({tally})")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the outcome as a line of JSON."""
        line = {"torture": self.name, "tried": self.tried, "lost": self.lost, "silent": self.silent}
        return json.dumps(line | {"facts": self.facts, "counts": dict(self.counts), "told": self.told})

"""What a torture found."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Outcome:
    """``tried`` cases, of which ``lost`` ended with other bytes or unnoticed, and ``silent`` gave a wrong answer."""

    name: str
    tried: int = 0
    lost: int = 0
    silent: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    facts: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        """Add to a tally."""
        self.counts[what] += int(number)

    def fact(self, what: str, number: int) -> None:
        """Say what was tortured: the same in all parts of a run."""
        self.facts[what] = int(number)

    def add(self, other: dict[str, Any]) -> None:
        """Take in what another part of the run found, from its line of JSON."""
        self.tried += other["tried"]
        self.lost += other["lost"]
        self.silent += other["silent"]
        self.counts.update(other["counts"])
        self.facts |= other["facts"]
        self.told += other["told"]

    def lose(self, story: str) -> None:
        """A case that shouldn't have ended as it did."""
        self.lost += 1
        self.told.append(story)

    def text(self) -> str:
        """For people."""
        lines = [f"  {story}" for story in self.told[:20]]
        tally = ", ".join(f"{number:,} {what}" for what, number in (self.facts | self.counts).items())
        lines.append(f"{self.name}: {self.tried:,} tried, {self.lost} lost, {self.silent} silent ({tally})")
        return "\n".join(lines)

    def to_json(self) -> str:
        """One line."""
        line = {"torture": self.name, "tried": self.tried, "lost": self.lost, "silent": self.silent}
        return json.dumps(line | {"facts": self.facts, "counts": dict(self.counts), "told": self.told})

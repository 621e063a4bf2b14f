"""Several stores of one LM, searched as one store."""

from collections.abc import Sequence
from functools import cached_property

from knnstore.arrays import Int64
from knnstore.datastore.manifest import Manifest
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError


class Stores:
    """One or more stores, each with its own index; row numbers continue from one store to the next."""

    def __init__(self, stores: Sequence[Datastore]) -> None:
        self.each = tuple(stores)
        roots = [store.root.resolve() for store in stores]
        for root in roots:
            if roots.count(root) > 1:
                raise UsageError.about("store", root.name, "is given twice", remedy="its keys would count double")

    @property
    def only(self) -> Datastore | None:
        """Return the store if there is only one, else None."""
        return self.each[0] if len(self.each) == 1 else None

    @property
    def manifest(self) -> Manifest:
        """Return the manifest of the first store, which defines the windows that texts are cut into."""
        return self.each[0].manifest

    @property
    def special_tokens(self) -> bool:
        """Return whether the spelling of a special token in a text is that token, as in the first store's documents."""
        return self.each[0].special_tokens

    @property
    def name(self) -> str:
        """Return the names of the stores, as in ``wiki + books``."""
        return " + ".join(store.name for store in self.each)

    @cached_property
    def rows(self) -> int:
        """Return the number of (key, value) pairs, hidden ones included."""
        return sum(store.rows for store in self.each)

    @cached_property
    def live_rows(self) -> int:
        """Return the number of (key, value) pairs that a search can find."""
        return sum(store.live_rows for store in self.each)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Return the segments of all stores, in the order of their rows."""
        return tuple(segment for store in self.each for segment in store.segments)

    def heldout(self) -> list[tuple[Segment, Int64]]:
        """Return, for each segment, its documents that have a held-out part and aren't removed."""
        return [(segment, store.heldout(segment)) for store in self.each for segment in store.segments]

"""A binary heap that knows where its items are: an item is moved or taken out in O(log n)."""

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class IndexedHeap(Generic[T]):
    """The smallest key first. Keys are compared with ``<`` and must differ for the order to be certain."""

    __slots__ = ("_entries", "_places")

    def __init__(self) -> None:
        self._entries: list[tuple[Any, T]] = []
        self._places: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def first(self) -> T | None:
        """The item with the smallest key; None where there is none."""
        return self._entries[0][1] if self._entries else None

    def put(self, item: T, key: Any) -> None:
        """Insert the item, or give it another key."""
        place = self._places.get(item)
        if place is None:
            place = len(self._entries)
            self._entries.append((key, item))
            self._places[item] = place
        else:
            self._entries[place] = (key, item)
        self._sink(self._rise(place))

    def discard(self, item: T) -> None:
        """Take the item out, if it is there."""
        place = self._places.pop(item, None)
        if place is None:
            return
        last = self._entries.pop()
        if place < len(self._entries):
            self._set(place, last)
            self._sink(self._rise(place))

    def _set(self, place: int, entry: tuple[Any, T]) -> None:
        self._entries[place] = entry
        self._places[entry[1]] = place

    def _rise(self, place: int) -> int:
        entry = self._entries[place]
        while place > 0:
            above = (place - 1) // 2
            if not entry[0] < self._entries[above][0]:
                break
            self._set(place, self._entries[above])
            place = above
        self._set(place, entry)
        return place

    def _sink(self, place: int) -> None:
        entry, size = self._entries[place], len(self._entries)
        while (below := 2 * place + 1) < size:
            if below + 1 < size and self._entries[below + 1][0] < self._entries[below][0]:
                below += 1
            if not self._entries[below][0] < entry[0]:
                break
            self._set(place, self._entries[below])
            place = below
        self._set(place, entry)

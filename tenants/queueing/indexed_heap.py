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
        """The item with the smallest key; None if there is none."""
        return self._entries[0][1] if self._entries else None

    def put(self, item: T, key: Any) -> None:
        """Insert the item, or give it another key."""
        index = self._places.get(item)
        if index is None:
            index = len(self._entries)
            self._entries.append((key, item))
            self._places[item] = index
        else:
            self._entries[index] = (key, item)
        self._sink(self._rise(index))

    def discard(self, item: T) -> None:
        """Take the item out, if it is there."""
        index = self._places.pop(item, None)
        if index is None:
            return
        last = self._entries.pop()
        if index < len(self._entries):
            self._set(index, last)
            self._sink(self._rise(index))

    def _set(self, index: int, entry: tuple[Any, T]) -> None:
        self._entries[index] = entry
        self._places[entry[1]] = index

    def _rise(self, index: int) -> int:
        entry = self._entries[index]
        while index > 0:
            above = (index - 1) // 2
            if not entry[0] < self._entries[above][0]:
                break
            self._set(index, self._entries[above])
            index = above
        self._set(index, entry)
        return index

    def _sink(self, index: int) -> None:
        entry, size = self._entries[index], len(self._entries)
        while (below := 2 * index + 1) < size:
            if below + 1 < size and self._entries[below + 1][0] < self._entries[below][0]:
                below += 1
            if not self._entries[below][0] < entry[0]:
                break
            self._set(index, self._entries[below])
            index = below
        self._set(index, entry)

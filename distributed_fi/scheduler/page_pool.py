# SPDX-License-Identifier: Apache-2.0
"""Which pages of one replica's KV cache are in use."""

from __future__ import annotations

from collections.abc import Iterable

from distributed_fi.config import check_range
from distributed_fi.errors import InvalidArgumentError, ResourceError


class PagePool:
    """Page ids [0, num_pages), each free or in use. The page freed last is handed out first.

    The order depends on nothing but the calls made, so a replayed schedule uses the same pages.

    Args:
        num_pages: pages of the replica's cache.
    """

    def __init__(self, num_pages: int):
        check_range("num_pages", num_pages, "an integer >= 1", num_pages >= 1)
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._is_used = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def allocate(self, num_pages: int) -> list[int]:
        """Take this many pages.

        Raises:
            ResourceError: fewer are free; none is taken.
        """
        check_range("num_pages", num_pages, "an integer >= 0", num_pages >= 0)
        if num_pages > len(self._free):
            raise ResourceError("KV pages", str(num_pages), str(len(self._free)))
        pages = [self._free.pop() for _ in range(num_pages)]
        for page in pages:
            self._is_used[page] = 1
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back.

        Raises:
            InvalidArgumentError: a page is not in use, or no page of this pool; the pages before it are free then.
        """
        for page in pages:
            if not 0 <= page < self.num_pages or not self._is_used[page]:
                raise InvalidArgumentError("pages", page, f"a page in use, of {self.num_pages}")
            self._is_used[page] = 0
            self._free.append(page)

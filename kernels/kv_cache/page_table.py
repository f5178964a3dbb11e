# SPDX-License-Identifier: Apache-2.0
"""From (request, position) to (page, offset), with every bound checked on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.kv_cache.host_array import IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class PageTable:
    """The pages of each request, in the order of its tokens.

    page_indices[first_page[r] + j] holds the tokens [j * page_size, (j + 1) * page_size) of request r,
    for j < num_pages[r]. `name` is what the caller calls page_indices, for messages.
    """

    page_indices: IntArray
    first_page: IntArray
    num_pages: IntArray
    page_size: int
    name: str

    def check_lens(self, kv_lens: IntArray) -> None:
        """Raise InvalidArgumentError unless each request's pages hold its kv_len tokens."""
        needed = -(-kv_lens // self.page_size)
        if (needed > self.num_pages).any():
            self._raise_short(int(np.argmax(needed > self.num_pages)), int(needed[needed > self.num_pages][0]))

    def locate(self, request_idx: IntArray, position: IntArray) -> tuple[IntArray, IntArray]:
        """Page and offset of each (request, position); only the entries asked for must be valid pages.

        Raises:
            InvalidArgumentError: a request has no page for a position, or the page is negative.
        """
        page_idx, offset = np.divmod(position, self.page_size)
        short = page_idx >= self.num_pages[request_idx]
        if short.any():
            request, last_page = _first(short, request_idx, page_idx)
            self._raise_short(request, last_page + 1)
        page = self.page_indices[self.first_page[request_idx] + page_idx]
        if page.size and page.min() < 0:
            request, bad = _first(page < 0, request_idx, page)
            raise InvalidArgumentError(self.name, bad, f"page indices >= 0 for the tokens of request {request}")
        return page, offset

    def _raise_short(self, request: int, needed: int) -> None:
        expected = f"at least {needed} pages of {self.page_size} tokens for request {request}"
        raise InvalidArgumentError(self.name, f"{self.num_pages[request]} pages", expected)


def check_page_bound(name: str, max_page: int, num_pages: int) -> None:
    """Raise InvalidArgumentError unless the largest page index lies in a cache of `num_pages` pages."""
    if max_page >= num_pages:
        raise InvalidArgumentError(name, f"page index {max_page}", f"page indices < num_pages={num_pages}")


def _first(where: IntArray, *arrays: IntArray) -> list[int]:
    """The elements of broadcastable arrays at the first true place of `where`."""
    at = int(np.argmax(where))
    return [int(np.broadcast_to(array, where.shape).flat[at]) for array in arrays]

"""Checks whether the text of a query is usable."""

from __future__ import annotations

import re

UNUSABLE_QUERY = "with an unusable query"  # a defect in reports

_SURROGATE = re.compile("[\ud800-\udfff]")


def query_problem(query: str, *, max_chars: int | None) -> str | None:
    """Returns the problem of a query, or None.

    Args:
        query: the sentence.
        max_chars: longest query accepted; None for no limit.
    """
    if max_chars is not None and len(query) > max_chars:
        return f"the query has {len(query)} characters, more than data.max_query_chars={max_chars}"
    if (found := _SURROGATE.search(query)) is not None:
        return (
            f"the query holds \\u{ord(found[0]):04x}, half of a character (a lone surrogate); "
            f"expected valid Unicode"
        )
    return None

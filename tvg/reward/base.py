"""The reward interface, and the inputs that a reward can request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from tvg.core.parsing import ParsedAnswer
from tvg.types import GroundingExample, Segment

# A reward is any callable that accepts some fields of `Completions` as keyword arguments, or all of
# them (`**rest`), and returns one number per completion: a list, a tuple or a tensor [N]. Its
# signature names the fields that it reads:
#
#     def short(*, texts: list[str]) -> list[float]: ...
#
# A malformed completion gets a number like any other; a reward raises only for broken input.
Reward = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Completions:
    """The inputs of rewards for N completions; all lists have length N.

    Row n belongs to prompt n // group_size. Times are seconds from the start of the clip.

    Raises:
        ValueError: the lists differ in length, or a group is incomplete.
    """

    texts: list[str]  # special tokens removed
    answers: list[ParsedAnswer]  # parsed by the task
    truths: list[Segment | None]  # None: unknown, or the task has no segments
    durations_s: list[float]  # lengths of the clips, read from the files
    examples: list[GroundingExample]
    num_tokens: list[int]  # up to and including the first EOS
    is_finished: list[bool]  # ended by EOS, not truncated at the length limit
    is_exact: list[bool]  # has exactly the format that the prompt requests
    group_size: int

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in LISTS}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"completions: every list must have one entry per completion: got lengths {lengths}"
            )
        if self.group_size < 1 or len(self) % self.group_size:
            raise ValueError(
                "group_size must divide the completions: "
                f"got {len(self)} completions, group_size={self.group_size}"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, start: int, stop: int, *, group_size: int) -> Completions:
        """Returns the completions [start, stop), in groups of the given size."""
        lists = {name: getattr(self, name)[start:stop] for name in LISTS}
        return Completions(**lists, group_size=group_size)

    def given(self, names: frozenset[str]) -> dict[str, Any]:
        """Returns the named fields; lists are copied, so that a reward may modify them."""
        return {
            name: list(getattr(self, name)) if name in LISTS else getattr(self, name)
            for name in names
        }


FIELDS = frozenset(f.name for f in fields(Completions))
LISTS = tuple(f.name for f in fields(Completions) if f.name != "group_size")

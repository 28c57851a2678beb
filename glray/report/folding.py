"""Rows of tables for arms of many short stages: those without a marked end are shown together."""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar


class _Stage(Protocol):
    @property
    def seq_len(self) -> int: ...
    @property
    def mark_end(self) -> bool | None: ...


Stage = TypeVar("Stage", bound=_Stage)


def spans(stages: Sequence[Stage]) -> list[list[Stage]]:
    """The stages up to each marked end: one, or several where those between are not marked."""
    found: list[list[Stage]] = [[]]
    for stage in stages:
        found[-1].append(stage)
        if stage.mark_end is not False:
            found.append([])
    return [span for span in found if span]


def folded(stages: Sequence[Stage], kind: Callable[[Stage], Hashable]) -> list[list[Stage]]:
    """The stages of each row: one, or all of one ``kind`` in a span, the shortest first."""
    rows: list[list[Stage]] = []
    for span in spans(stages):
        of_kind: dict[Hashable, list[Stage]] = {}
        for stage in span:
            of_kind.setdefault(kind(stage), []).append(stage)
        rows += sorted(of_kind.values(), key=lambda row: row[0].seq_len)
    return rows


def length_text(row: Sequence[_Stage]) -> str:
    """``128``, or ``128 × 14`` of 14 stages."""
    return f"{row[0].seq_len:,}" + (f" × {len(row)}" if len(row) > 1 else "")

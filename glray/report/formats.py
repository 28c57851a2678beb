"""How numbers are written, the same in the terminal, the headline and the page."""

import math
from collections.abc import Sequence

from glray.run.statistics import ENOUGH_DOCUMENTS


def number(value: float | None, form: str = ".3f") -> str:
    """``4.452``; a dash for None, ``nan`` for a loss that is not a number."""
    return "-" if value is None else format(value, form)


def plus_minus(value: float, error: float | None, decimals: int = 3) -> str:
    """``4.452 ± 0.051``; without the error where it is None."""
    text = f"{value:z.{decimals}f}"
    return text if error is None else f"{text} ± {error:.{decimals}f}"


def mean_text(mean: float, half: float | None) -> str:
    """``4.452 ± 0.051``; a dash for a mean that is not a number."""
    return plus_minus(mean, half) if math.isfinite(mean) else "-"


def counted(number: int, noun: str) -> str:
    """``1 file``, ``1,024 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def tokens_text(num_tokens: float) -> str:
    """``1.27 M``: three significant digits."""
    for factor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if num_tokens >= factor:
            value = num_tokens / factor
            return f"{value:.{max(0, 3 - len(str(int(value))))}f}{unit}"
    return f"{num_tokens:.0f}"


def seconds_text(seconds: float | None) -> str:
    """``149.8``, ``12,345``; a dash for None."""
    return number(seconds, ",.0f" if seconds is not None and seconds >= 1000 else ",.1f")


def documents_text(num_documents: int) -> str:
    """``120 held-out documents``; of fewer than ``ENOUGH_DOCUMENTS`` it says what that means."""
    few = f" (fewer than {ENOUGH_DOCUMENTS}, so a few can dominate)"
    documents = counted(num_documents, "held-out document")
    return f"{documents}{few if num_documents < ENOUGH_DOCUMENTS else ''}"

"""How figures are written, the same in the terminal, the headline and the page."""


def loss_text(loss: float, decimals: int = 3) -> str:
    """``4.452``, or ``nan`` for a loss that is none."""
    return f"{loss:.{decimals}f}"


def plus_minus(loss: float, standard_error: float | None, decimals: int = 3) -> str:
    """``4.452 ± 0.051``; without the error where there is none."""
    if standard_error is None:
        return loss_text(loss, decimals)
    return f"{loss:.{decimals}f} ± {standard_error:.{decimals}f}"


def tokens_text(num_tokens: int) -> str:
    """``1.27 M``: three significant figures."""
    for factor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if num_tokens >= factor:
            value = num_tokens / factor
            return f"{value:.{max(0, 3 - len(str(int(value))))}f}{unit}"
    return str(num_tokens)


def seconds_text(seconds: float | None) -> str:
    """``149.8``, ``12,345``; a dash for None."""
    if seconds is None:
        return "-"
    return f"{seconds:,.1f}" if seconds < 1000 else f"{seconds:,.0f}"

"""Numbers in words: the one home of how fractions, sizes, counts and times are written, with their units."""

from math import isnan

__all__ = [
    "NOTHING",
    "amount",
    "billions",
    "computing_time",
    "counted",
    "duration",
    "interval_text",
    "megabytes",
    "millions",
    "nats",
    "percent",
    "relative_error",
]

NOTHING = "–"
"""What is shown in place of a number that means nothing."""


def percent(fraction: float, digits: int = 1) -> str:
    """Write a fraction in percent, with the space that the unit takes; one that means nothing, NaN, as a dash."""
    return NOTHING if isnan(fraction) else f"{100 * fraction:.{digits}f}\u00a0%"


def interval_text(ends: tuple[float, float]) -> str:
    """Write the ends of an interval of fractions in percent; one that means nothing, NaN, as a dash."""
    low, high = ends
    return NOTHING if isnan(low) else f"{100 * low:.1f} to {percent(high)}"


def relative_error(error: float) -> str:
    """Write a relative squared error in percent, with three digits."""
    value = 100 * error
    return f"{value:.0f} %" if value >= 100 else f"{value:.3g} %" if value >= 0.001 or value == 0 else f"{value:.1e} %"


def nats(divergence: float, digits: int = 3) -> str:
    """Write a KL divergence; one that means nothing, NaN, as a dash."""
    return NOTHING if isnan(divergence) else f"{divergence:.{digits}g} nats"


def megabytes(size_bytes: float) -> str:
    """Write a size in decimal megabytes, small ones in kilobytes."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e5 or not size_bytes else f"{size_bytes / 1e3:.1f} kB"


def millions(count: float, digits: int = 3) -> str:
    """Write a count in millions: parameters, multiply-accumulates."""
    return f"{count / 1e6:.{digits}f} M"


def billions(count: float) -> str:
    """Write a count in billions: BitOps."""
    return f"{count / 1e9:.3f} G"


def amount(count: int) -> str:
    """Write a count with three digits and thousands, millions or billions as a unit."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def counted(count: int, noun: str) -> str:
    """Write a number of things with the plural where it is due."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def computing_time(seconds: float) -> str:
    """Write a time that was measured."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def duration(seconds: float) -> str:
    """Write a time that is only estimated: no more digits than it is good for, and at least a second."""
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

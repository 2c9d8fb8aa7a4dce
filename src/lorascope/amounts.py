"""Counts, bytes and seconds in words, the same in every table and message. Floor: beside ``config``."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def bytes_text(value: int | None) -> str:
    """KiB, MiB or GiB."""
    if value is None:
        return "–"
    if 0 < value < 2**20:
        return f"{value / 2**10:.1f} KiB"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def seconds_text(value: float | None) -> str:
    """Seconds, minutes or hours."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"

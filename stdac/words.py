"""Numbers, times and names as a person reads them."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence


def escape_line(text: object) -> str:
    """The text without line breaks or control characters, which the name of a file or a cluster may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shorten_paths(names: Iterable[str]) -> dict[str, str]:
    """What each of some names is called in a line or a table: of a path as many parts from its end as tell it from the
    others.

    >>> shorten_paths(["mnist", "/data/a/photos", "/data/b/photos"])
    {'mnist': 'mnist', '/data/a/photos': 'a/photos', '/data/b/photos': 'b/photos'}
    """
    unique = set(names)
    ends = Counter(end for name in unique for end in _list_ends(name))
    return {name: next((end for end in _list_ends(name) if ends[end] < 2), name) for name in unique}


def _list_ends(name: str) -> list[str]:
    """The ends of a path, the shortest first, itself last."""
    words = name.split("/")
    return ["/".join(words[-n:]) for n in range(1, len(words) + 1) if words[-n]]


def count_noun(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 image", "2,000 images"; plural: of a noun that takes more than an s."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def format_score(score: float) -> str:
    """A score in [0, 1], the same wherever a person reads it."""
    return f"{score:.3f}"


def list_some(texts: Sequence[str], most: int = 4) -> str:
    """The texts in a line: all, or the first and the last."""
    return ", ".join(texts) if len(texts) <= most else f"{texts[0]} … {texts[-1]}"


def format_duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    if not math.isfinite(seconds):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def format_time(seconds: float) -> str:
    """A time in seconds since the epoch as UTC in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

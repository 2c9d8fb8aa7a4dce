"""A dialect of no county: a word for a word, so that what is said stays as true as it was.

``lorascope:small`` has read talk of other worlds in plain words and none in dialect; some of its books have a word of it here
and there. So there is something to learn, and how far it was learned can be seen at a glance. Knows words alone.
"""

from __future__ import annotations

import re

_WORDS = {
    "it is": "'tis",
    "you are": "thou art",
    "i am": "I be",
    "always": "allus",
    "am": "be",
    "and": "an'",
    "anything": "owt",
    "are": "be",
    "for": "fer",
    "has": "hath",
    "have": "ha'",
    "is": "be",
    "must": "mun",
    "my": "me",
    "never": "ne'er",
    "nothing": "nowt",
    "of": "o'",
    "over": "o'er",
    "something": "summat",
    "the": "th'",
    "to": "t'",
    "was": "were",
    "with": "wi'",
    "yes": "aye",
    "you": "thee",
    "your": "thy",
}
# The longest first: "you are" before "you".
_PLAIN = re.compile(rf"\b({'|'.join(sorted(_WORDS, key=len, reverse=True))})\b", re.IGNORECASE)


def in_dialect(text: str) -> str:
    """The text as it is said there; capitals stay where they were."""
    return _PLAIN.sub(_spoken, text)


def _spoken(found: re.Match[str]) -> str:
    plain, word = found[0], _WORDS[found[0].lower()]
    if not plain[0].isupper():
        return word
    first = next(place for place, letter in enumerate(word) if letter.isalpha())
    return word[:first] + word[first].upper() + word[first + 1 :]

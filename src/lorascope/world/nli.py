"""Pairs of a reply and a persona sentence, with what the one says of the other.

For a sentence of a conversation's persona there is one pair of each class: a reply of the speaker that says the same, one of
somebody of whom the contrary is true, and one that leaves it open. The last is an answer to another question, small talk, or a
sentence in which the same word has another part, so that words in common prove nothing. A sentence for which not all three can
be found new has none, so that the classes are equally frequent.

A pair's pattern is the wording that its persona sentence was made of: few wordings make many pairs, and a score is one of
patterns rather than of pairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lorascope.world.decoys import DECOYS
from lorascope.world.facts import NO_PET, Fact, Label, fact_of, fields_of, label, phrases_of
from lorascope.world.lore import DISHES, DISLIKED, Dish, names_of
from lorascope.world.persona import Dialogue, said
from lorascope.world.small_talk import AFTER, BEFORE, GREETINGS
from lorascope.world.town import Person, town_of
from lorascope.world.wording import Novelty, Split, fill, one, stream

_EXTRA = 0.2
# Few wordings of few facts soon say the same twice.
_ATTEMPTS = 24


@dataclass(frozen=True)
class Pair:
    """A reply (the premise), a sentence about its speaker (the hypothesis), the facts behind both, the sentence's wording."""

    reply: str
    sentence: str
    label: Label
    claims: tuple[Fact, ...]
    fact: Fact
    pattern: str


def pairs(seed: int, split: Split, conversations: Sequence[Dialogue], known: Novelty) -> list[Pair]:
    """Three pairs in a drawn order, one of each class, for the persona sentences of the conversations.

    Args:
        known: what training pairs hold; as for ``dialogues``, and no pair comes in two splits.
    """
    found: dict[tuple[str, str], Pair] = {}
    for number, dialogue in enumerate(conversations):
        draw = stream(seed, split, "pairs", number)
        for sentence, fact in zip(dialogue.persona, dialogue.facts, strict=True):
            made = _Pairs(seed, split, dialogue, sentence, fact, draw)
            three = [_new(made, make, split, known, found) for make in (made.entailing, made.contradicting, made.neutral)]
            draw.shuffle(three)
            whole = [pair for pair in three if pair is not None]
            if len(whole) == len(three):
                found.update({(pair.reply, pair.sentence): pair for pair in whole})
    for pair in found.values():
        # Of an evaluation split the pair alone, so that a test asks none of validation's.
        known.learn([f"{pair.reply} {pair.sentence}", *((pair.reply, pair.sentence) if split == "train" else ())])
    return list(found.values())


def _new(
    made: _Pairs, make: Callable[[], _Reply], split: Split, known: Novelty, found: Mapping[tuple[str, str], Pair]
) -> Pair | None:
    """A pair that is neither known nor found yet, and whose texts differ; None after so many attempts."""
    for _ in range(_ATTEMPTS):
        pair = made.pair(*make())
        texts = pair.reply, pair.sentence
        # Equal texts are no question.
        if pair.reply != pair.sentence and texts not in found and (split == "train" or known.is_new(*texts)):
            return pair
    return None


_Reply = tuple[str, tuple[Fact, ...]]


class _Pairs:
    """Replies about one sentence of one conversation's persona."""

    def __init__(self, seed: int, split: Split, dialogue: Dialogue, sentence: str, fact: Fact, draw: random.Random) -> None:
        self._seed, self._split, self._dialogue, self._draw = seed, split, dialogue, draw
        self._speaker, self._sentence, self._fact = dialogue.speaker, sentence, fact
        fields = fields_of(self._speaker, fact.slot)
        self._pattern = next(text for text in phrases_of(fact).states if fill(text, fields).text == sentence)

    def pair(self, reply: str, claims: tuple[Fact, ...]) -> Pair:
        """The pair of a reply with that sentence, labelled by the facts."""
        return Pair(
            self._with_more(reply, bool(claims)), self._sentence, label(claims, self._fact), claims, self._fact, self._pattern
        )

    def entailing(self) -> _Reply:
        own = [
            (made.reply, made.claims) for made in self._dialogue.exchanges if label(made.claims, self._fact) == "entailment"
        ]
        return own[0] if own and self._draw.random() < 0.5 else self._answer(self._speaker, self._fact.slot)

    def contradicting(self) -> _Reply:
        slot, speaker = self._fact.slot, self._speaker
        if slot == "hates":
            return self._answer(replace(speaker, loves=_dish(self._fact.value)), "loves")
        if slot == "loves" and self._draw.random() < 0.3:
            return self._answer(replace(speaker, hates=_dish(self._fact.value)), "hates")
        if slot == "pet" and self._fact.name is not None and self._draw.random() < 0.25:
            others = [name for name in names_of(self._split).pets if name != self._fact.name]
            return self._answer(replace(speaker, house=replace(speaker.house, pet_name=self._draw.choice(others))), slot)
        return self._answer(next(person for person in self._others() if self._excludes(person)), slot)

    def neutral(self) -> _Reply:
        kind = self._draw.random()
        if kind < 0.5:
            return self._decoy(), ()
        open_replies = [made for made in self._dialogue.exchanges if label(made.claims, self._fact) == "neutral"]
        if kind < 0.9 and open_replies:
            made = self._draw.choice(open_replies)
            return made.reply, made.claims
        _, answer = one(GREETINGS[self._draw.choice(list(GREETINGS))], self._split, self._draw)
        return answer, ()

    def _decoy(self) -> str:
        """The sentence's own word in another part; now and then another word, which proves nothing either."""
        slot = self._fact.slot
        decoy = one(DECOYS[slot], self._split, self._draw)
        person = self._speaker
        if self._fact.value == NO_PET or self._draw.random() < 0.25:
            person = next(other for other in self._others() if fact_of(other, slot).value not in (NO_PET, self._fact.value))
        return fill(decoy, fields_of(person, slot)).text

    def _with_more(self, reply: str, is_about_self: bool) -> str:
        """Now and then a sentence that says nothing stands before or after what somebody tells of himself."""
        if not is_about_self or self._draw.random() > _EXTRA:
            return reply
        if reply.endswith("?") or self._draw.random() < 0.5:
            return f"{one(BEFORE, self._split, self._draw)} {reply}"
        return f"{reply} {one(AFTER, self._split, self._draw)}"

    def _answer(self, person: Person, slot: str) -> _Reply:
        return said(person, slot, "answers", self._split, self._draw), (fact_of(person, slot),)

    def _excludes(self, person: Person) -> bool:
        return label((fact_of(person, self._fact.slot),), self._fact) == "contradiction"

    def _others(self) -> Iterator[Person]:
        """People of the split's towns, from anywhere."""
        while True:
            yield self._draw.choice(town_of(self._seed, self._split, self._draw.randrange(3)).people)


def _dish(name: str) -> Dish:
    return next(dish for dish in (*DISHES, *DISLIKED) if dish.name == name)

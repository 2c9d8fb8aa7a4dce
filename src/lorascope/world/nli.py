"""Pairs of a reply and a persona sentence, with what the one says of the other.

For every sentence of a conversation's persona there is one pair of each class: a reply of the speaker that says the same, one
of somebody of whom the contrary is true, and one that leaves it open. The last is an answer to another question, small talk,
or a sentence in which the same word has another part, so that words in common prove nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorascope.world.facts import NO_PET, Fact, Label, fact_of, fields_of, label
from lorascope.world.lore import DISHES, DISLIKED, Dish, names_of
from lorascope.world.persona import Dialogue, said
from lorascope.world.phrases import DECOYS
from lorascope.world.small_talk import FAREWELLS, GREETINGS
from lorascope.world.town import Person, town_of
from lorascope.world.wording import Novelty, Split, fill, one, stream

_EXTRA = 0.2


@dataclass(frozen=True)
class Pair:
    """A reply (the premise), a sentence about its speaker (the hypothesis), and the facts behind both."""

    reply: str
    sentence: str
    label: Label
    claims: tuple[Fact, ...]
    fact: Fact


def pairs(seed: int, split: Split, conversations: Sequence[Dialogue], known: Novelty) -> list[Pair]:
    """Three pairs, one of each class, for every persona sentence of the conversations.

    Args:
        known: what training pairs hold; as for ``dialogues``, and no pair comes in two splits.
    """
    found: dict[tuple[str, str], Pair] = {}
    for number, dialogue in enumerate(conversations):
        draw = stream(seed, split, "pairs", number)
        for sentence, fact in zip(dialogue.persona, dialogue.facts, strict=True):
            made = _Pairs(seed, split, dialogue, sentence, fact, draw)
            for reply, claims in (made.entailing(), made.contradicting(), made.neutral()):
                reply = made.with_more(reply)
                pair = Pair(reply, sentence, label(claims, fact), claims, fact)
                # Equal texts are no question.
                if reply != sentence and (split == "train" or known.is_new(reply, sentence)):
                    found.setdefault((reply, sentence), pair)
    for pair in found.values():
        # Of an evaluation split the pair alone, so that a test asks none of validation's.
        known.learn([f"{pair.reply} {pair.sentence}", *((pair.reply, pair.sentence) if split == "train" else ())])
    return list(found.values())


_Reply = tuple[str, tuple[Fact, ...]]


class _Pairs:
    """Replies about one sentence of one conversation's persona."""

    def __init__(self, seed: int, split: Split, dialogue: Dialogue, sentence: str, fact: Fact, draw: random.Random) -> None:
        self._seed, self._split, self._dialogue, self._draw = seed, split, dialogue, draw
        self._speaker, self._sentence, self._fact = dialogue.speaker, sentence, fact

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
        if kind < 0.4 and self._fact.slot in DECOYS and self._fact.value != NO_PET:
            decoy = one(DECOYS[self._fact.slot], self._split, self._draw)
            return fill(decoy, fields_of(self._speaker, self._fact.slot)).text, ()
        open_replies = [made for made in self._dialogue.exchanges if label(made.claims, self._fact) == "neutral"]
        if kind < 0.9 and open_replies:
            made = self._draw.choice(open_replies)
            return made.reply, made.claims
        _, answers = GREETINGS[self._draw.choice(list(GREETINGS))]
        return one(answers, self._split, self._draw), ()

    def with_more(self, reply: str) -> str:
        """Now and then a sentence that says nothing stands before or after."""
        if self._draw.random() > _EXTRA:
            return reply
        _, greetings = GREETINGS[self._draw.choice(list(GREETINGS))]
        if self._draw.random() < 0.5:
            return f"{one(greetings, self._split, self._draw)} {reply}"
        return f"{reply} {one(FAREWELLS[0], self._split, self._draw)}"

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

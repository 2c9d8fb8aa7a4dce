"""The sentences that passages are made of, with the questions that each answers. Does not know a town."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Telling:
    """One thing to tell in several wordings; ``questions`` by the field that answers them."""

    sentences: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]


LANDMARK = (
    Telling(
        (
            "The {kind} of {town} stands {where}.",
            "Whoever comes to {town} sees the {kind} {where}.",
            "{where} you will see the {kind} of {town}.",
            "The pride of {town} is the {kind} {where}.",
        ),
        {
            "where": (
                "Where does the {kind} stand?",
                "Where is the {kind} of {town}?",
                "Whereabouts in {town} is the {kind}?",
                "Where would you look for the {kind}?",
            )
        },
    ),
    Telling(
        (
            "It was built by {builder} in {year}.",
            "{builder} built it in the year {year}.",
            "The work was begun in {year} by {builder}.",
            "On it you can read the name of its builder, {builder}, and the year {year}.",
        ),
        {
            "builder": (
                "Who built the {kind}?",
                "By whom was the {kind} built?",
                "Whose work is the {kind}?",
                "Who made the {kind} of {town}?",
            ),
            "year": (
                "When was the {kind} built?",
                "In what year was the {kind} built?",
                "From what year does the {kind} date?",
                "In which year did they build the {kind}?",
            ),
        },
    ),
    Telling(
        (
            "It is made of {material}.",
            "Every part of it is {material}.",
            "They used {material}, which was brought by boat.",
            "The builders chose {material} for it.",
        ),
        {
            "material": (
                "What is the {kind} made of?",
                "What did the builders use for the {kind}?",
                "What is the {kind} built of?",
                "Which material was chosen for the {kind}?",
            )
        },
    ),
    Telling(
        (
            "From the ground to the top it measures {feet}.",
            "It is {feet} high.",
            "With its {feet} it is higher than any tree in the valley.",
            "The children have measured it with a string and found {feet}.",
        ),
        {
            "feet": (
                "How high is the {kind}?",
                "What is the height of the {kind}?",
                "How many feet does the {kind} measure?",
                "How tall is the {kind}?",
            )
        },
    ),
    Telling(
        (
            "The old people say {legend}.",
            "At the inn you will hear {legend}.",
            "Every child has heard {legend}.",
            "A song of the valley says {legend}.",
        ),
        {
            "legend": (
                "What do people tell of the {kind}?",
                "What story is told of the {kind}?",
                "What do the children hear about the {kind}?",
                "What is said of the {kind}?",
            )
        },
    ),
    Telling(
        (
            "Today {keeper} keeps the key.",
            "The key to it hangs in the kitchen of {keeper}.",
            "{keeper} looks after it now.",
            "Whoever wishes to go up must ask {keeper} for the key.",
        ),
        {
            "keeper": (
                "Who keeps the key to the {kind}?",
                "Who looks after the {kind}?",
                "Whom must you ask for the key to the {kind}?",
                "In whose care is the {kind} now?",
            )
        },
    ),
    Telling(
        (
            "After a flood it had to be mended in {repaired}.",
            "In {repaired} it was struck by lightning and mended.",
            "It was mended in {repaired}, and has not been touched again.",
            "After a great storm it was mended in {repaired}.",
        ),
        {
            "repaired": (
                "When was the {kind} mended?",
                "In what year was the {kind} mended?",
                "When was the {kind} last mended?",
                "In which year did the {kind} need mending?",
            )
        },
    ),
)

HAPPENING = (
    Telling(
        (
            "The {contest} of {year} is still talked of in {town}.",
            "Nobody in {town} has forgotten the {contest} of {year}.",
            "In {year} {town} held its greatest {contest}.",
            "The old people of {town} like to tell of the {contest} of {year}.",
        ),
        {
            "year": (
                "In what year was the {contest}?",
                "When was the {contest} of {town} held?",
                "Which year's {contest} is remembered?",
                "In which year did {town} hold the {contest}?",
            )
        },
    ),
    Telling(
        (
            "It was held on a {day} in {season}.",
            "It fell on a {day}, in {season}.",
            "The day chosen was a {day} in {season}.",
            "One {day} in {season} it began.",
        ),
        {
            "day": (
                "On which day of the week was the {contest}?",
                "What day of the week was chosen for the {contest}?",
                "On what day was the {contest} held?",
                "Which weekday was it?",
            ),
            "season": (
                "In which season was the {contest}?",
                "At what time of the year was the {contest}?",
                "What season was it?",
                "In what part of the year was it held?",
            ),
        },
    ),
    Telling(
        (
            "There were {visitors} people to see it.",
            "People came from every village, {visitors} in all.",
            "The keeper of the gate counted {visitors} visitors.",
            "No fewer than {visitors} people stood and watched.",
        ),
        {
            "visitors": (
                "How many people came to the {contest}?",
                "How many visitors were there?",
                "How many people saw the {contest}?",
                "How large was the crowd?",
            )
        },
    ),
    Telling(
        (
            "On that day {weather}.",
            "As for the weather, {weather}.",
            "Everybody remembers that {weather}.",
            "While they waited, {weather}.",
        ),
        {
            "weather": (
                "What was the weather like?",
                "How was the weather on the day of the {contest}?",
                "What was the weather on that day?",
                "What kind of weather did they have?",
            )
        },
    ),
    Telling(
        (
            "{winner}, the {winner_trade}, won, and nobody was surprised.",
            "The winner was {winner}, the {winner_trade}.",
            "In the end {winner} the {winner_trade} was the best of all.",
            "First came {winner}, whom all knew as the {winner_trade}.",
        ),
        {
            "winner": (
                "Who won the {contest}?",
                "Who was the winner?",
                "Who was the best of all?",
                "Who came first in the {contest}?",
            ),
            "winner_trade": (
                "What was the winner's trade?",
                "What did the winner do for a living?",
                "What trade did the winner have?",
                "What work did the winner of the {contest} do?",
            ),
        },
    ),
    Telling(
        (
            "The prize was {prize}.",
            "The mayor gave the winner {prize}.",
            "For this the prize was {prize}.",
            "The reward, {prize}, was handed over amid loud cheers.",
        ),
        {
            "prize": (
                "What was the prize?",
                "What did the mayor give to the winner?",
                "What could you win at the {contest}?",
                "What was the reward for the winner?",
            )
        },
    ),
    Telling(
        (
            "{second} came second by very little.",
            "Second was {second}, who took it with a laugh.",
            "Only {second} had come near to winning.",
            "Behind the winner, and not far, was {second}.",
        ),
        {
            "second": (
                "Who came second?",
                "Who was second in the {contest}?",
                "Who nearly won?",
                "Who was just behind the winner?",
            )
        },
    ),
)

SHOPS = (
    Telling(
        (
            "{town} lies on {river} and has its market every {market_day}.",
            "Every {market_day} there is a market in {town}, on the bank of {river}.",
            "On {market_day} carts come to the market of {town} from both sides of {river}.",
            "Where {river} turns to the south lies {town}, with a market on {market_day}.",
        ),
        {
            "market_day": (
                "On which day is the market in {town}?",
                "When is there a market in {town}?",
                "What is the market day of {town}?",
                "Which day is market day in {town}?",
            ),
            "river": (
                "On which river does {town} lie?",
                "What is the river of {town} called?",
                "What river flows past {town}?",
                "Which river runs by {town}?",
            ),
        },
    ),
    Telling(
        (
            "{goods1} come from {shop1}, which opens at {opens1}.",
            "For {goods1} you go to {shop1}, which is open from {opens1}.",
            "{shop1} sells {goods1} and opens at {opens1}.",
            "At {opens1} the door of {shop1} is opened, and there are {goods1} to be had.",
        ),
        {
            "goods1": (
                "What comes from {shop1}?",
                "What can you get at {shop1}?",
                "What does {shop1} sell?",
                "What do people go to {shop1} for?",
            ),
            "opens1": (
                "When does {shop1} open?",
                "From what hour can you go to {shop1}?",
                "How early is {shop1} open?",
                "At what hour is the door of {shop1} opened?",
            ),
        },
    ),
    Telling(
        (
            "{shop2} is next door and shuts at {closes2}.",
            "Across the street is {shop2}, where the lamp is put out at {closes2}.",
            "Not far off is {shop2}, and it shuts at {closes2}.",
            "At {closes2}, and not before, {shop2} is shut for the night.",
        ),
        {
            "closes2": (
                "When does {shop2} shut?",
                "Until what hour is {shop2} open?",
                "At what hour does {shop2} shut?",
                "How late can you go to {shop2}?",
            )
        },
    ),
    Telling(
        (
            "{shop3} is never open on {shut3}.",
            "On {shut3} nobody works at {shop3}.",
            "Do not go to {shop3} on a {shut3}, for it is shut.",
            "The door of {shop3} is locked on {shut3}.",
        ),
        {
            "shut3": (
                "On which day is {shop3} shut?",
                "When is nobody at work at {shop3}?",
                "Which day is a bad one for a visit to {shop3}?",
                "What is the day of rest at {shop3}?",
            )
        },
    ),
    Telling(
        (
            "{goods4} are to be had from {owner4}.",
            "{owner4} is known for {goods4}.",
            "Anyone who wants {goods4} asks for {owner4}.",
            "All the {goods4} in the valley come from {owner4}.",
        ),
        {
            "owner4": (
                "Who is known for {goods4}?",
                "Whom do people ask for {goods4}?",
                "From whom can you get {goods4}?",
                "Who sells {goods4} in {town}?",
            ),
            "goods4": (
                "What is {owner4} known for?",
                "What can you get from {owner4}?",
                "What does {owner4} sell?",
                "What do people want from {owner4}?",
            ),
        },
    ),
)

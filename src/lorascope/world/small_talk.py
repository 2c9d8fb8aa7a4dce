"""Turns that say nothing of the speaker: greetings, weather, news of the town, farewells. Does not know who speaks."""

from __future__ import annotations

# By weather: what one says first, and what the other answers; every pair goes together.
GREETINGS = {
    "rain": (
        (
            "Good morning! What weather.",
            "Come in under the roof, you are wet through.",
            "Will this rain never stop?",
            "Good day to you. Another wet morning.",
            "Hello! I have not seen the sun for a week.",
            "What a day to be out of doors!",
        ),
        (
            "Good morning. The ducks at least are happy.",
            "Yes, the street is a river today.",
            "It is good for the gardens, they say.",
            "Good day. I have forgotten what dry socks are.",
            "It rained in at my window all night.",
            "We must be patient. It cannot last for ever.",
        ),
    ),
    "sun": (
        (
            "Good morning! What a fine day.",
            "Hello there! Is it not warm today?",
            "Good day. The sun is out at last.",
            "What a blue sky we have this morning!",
            "Good morning, neighbour. Fine weather for the hay.",
            "Come and sit on the bench with me. It is warm here.",
        ),
        (
            "Good morning. Yes, one wants to sing.",
            "It is a day to leave the windows open.",
            "Good day. I have come out only to feel the sun.",
            "Yes, it makes the whole town look new.",
            "We have waited long enough for it.",
            "I hope it will last until the feast.",
        ),
    ),
    "snow": (
        (
            "Good morning! Mind the step, it is all ice.",
            "Hello! How deep is the snow at your door?",
            "Good day. Are your hands as cold as mine?",
            "What a white world we have today!",
            "Have you ever seen so much snow?",
            "Come to the fire. You are white from head to foot.",
        ),
        (
            "Good morning. I had to dig my way out.",
            "Up to my knees, and it is still falling.",
            "Good day. I cannot feel my nose any more.",
            "The children are wild with joy.",
            "The coach has not come through since Monday.",
            "It is pretty to look at from a warm room.",
        ),
    ),
    "wind": (
        (
            "Good morning! Hold on to your hat.",
            "What a wind there was last night!",
            "Hello! Did the storm wake you too?",
            "Good day. The wind has taken two of my tiles.",
            "Is your roof still on?",
            "I was nearly blown over the bridge just now.",
        ),
        (
            "Good morning. I have lost one hat already.",
            "Yes, my shutters banged until four.",
            "Good day. I thought the chimney would come down.",
            "There is an old tree across the road, they say.",
            "It is going down now, I believe.",
            "It blew the washing into the next garden.",
        ),
    ),
    "fog": (
        (
            "Good morning! I did not see you in this fog.",
            "Who is there? Oh, it is you.",
            "Hello! Is that you behind the lamp?",
            "Good day. One cannot see one's own feet.",
            "I walked past my own door this morning.",
            "How thick it is today! Like wool.",
        ),
        (
            "Good morning. I found my way by the wall.",
            "Yes, it came up from the water in the night.",
            "Good day. I have said good morning to a post.",
            "It will be gone before noon, I think.",
            "It is as quiet as in a church.",
            "I heard you long before I saw you.",
        ),
    ),
}
FAREWELLS = (
    (
        "I must go now, before the shops shut.",
        "There is the bell. I have to be off.",
        "It was good to talk with you.",
        "I have kept you long enough.",
        "Somebody is calling me. Until next time!",
        "I must see to my supper now.",
    ),
    (
        "Then good day to you, and come again.",
        "Goodbye! My greetings to everyone at home.",
        "It was a pleasure. Until we meet again.",
        "Go safely, and mind the puddles.",
        "I must be on my way too. Good evening!",
        "Goodbye, and thank you for your company.",
    ),
)
# Questions about the town with true answers.
SHOP_TALK = (
    ("When does {shop} shut?", "{shop} shuts at {closes}."),
    ("Do you know when {shop} opens?", "It opens at {opens}, but never on a {shut}."),
    ("Is {shop} open on {shut}?", "No, {shut} is the one day when it is shut."),
    ("Who has the {place} here?", "{owner} has it. Everybody knows {owner_first}."),
)
TOWN_TALK = (
    ("When is the market held here?", "The market is every {market_day}, in front of the church."),
    ("What is the name of the river?", "They call it {river}."),
    ("Who won the {contest} that year?", "{winner} won it, and took home {prize}."),
    ("How old is the {landmark}?", "{builder} built it in {year}, if the stone over the door tells the truth."),
    ("Is it true, what they tell of the {landmark}?", "They tell {legend}. I have never seen it."),
    ("How high is the {landmark}, do you think?", "It is {feet} feet high. The children have measured it."),
    ("Were many people at the {contest}?", "There were {visitors} people, and {weather}."),
    ("Do you come from this town?", "I was born in {town}, and I shall stay here."),
)
ASK_BACK = ("And you?", "And what of you?", "How is it with you?", "What about yourself?")

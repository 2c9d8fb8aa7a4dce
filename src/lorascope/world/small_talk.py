"""Turns that say nothing of the speaker: greetings, weather, news of the town, farewells. Does not know who speaks."""

from __future__ import annotations

# What one says first and what the other answers, by weather.
GREETINGS = {
    "rain": (
        ("Good morning! What weather.", "Good morning. The ducks at least are happy."),
        ("Come in under the roof, you are wet through.", "Thank you. The street is a river today."),
        ("Will this rain never stop?", "It is good for the gardens, they say."),
        ("Good day to you. Another wet morning.", "Good day. I have forgotten what dry socks are."),
        ("Hello! I have not seen the sun for a week.", "Nor have I. We must be patient."),
        ("What a day to be out of doors!", "It is. I shall be glad of a dry coat."),
        ("Did you hear the rain in the night?", "I did. It came in at my window."),
        ("Mind the puddle there!", "Too late. My boots are full of water."),
    ),
    "sun": (
        ("Good morning! What a fine day.", "Good morning. It is a day to leave the windows open."),
        ("Hello there! Is it not warm today?", "It is. I have come out only to feel the sun."),
        ("Good day. The sun is out at last.", "Yes, it makes the whole town look new."),
        ("What a blue sky we have this morning!", "Not a cloud in it. I hope it will last."),
        ("Good morning, neighbour. Fine weather for the hay.", "Very fine. They will bring it in by Saturday."),
        ("Come and sit on the bench with me. It is warm here.", "With pleasure. It is good to rest in the sun."),
        ("What a spell of fine weather we are having!", "We have waited long enough for it."),
        ("Good day! You have no need of a coat today.", "No indeed. I left it on its hook."),
    ),
    "snow": (
        ("Good morning! Mind the step, it is all ice.", "Good morning. I nearly fell on it just now."),
        ("Hello! How deep is the snow at your door?", "Up to my knees, and it is still falling."),
        ("Good day. Are your hands as cold as mine?", "Colder, I think. I cannot feel my fingers any more."),
        ("What a white world we have today!", "Yes, it is pretty to look at from a warm room."),
        ("Have you ever seen so much snow?", "Never. I had to dig my way out."),
        ("Come to the fire. You are white from head to foot.", "Thank you. It is snowing harder than ever."),
        ("Has the coach come through?", "Not since Monday. The road is deep in snow."),
        ("Look at the children on the ice!", "They are wild with joy, and quite right too."),
    ),
    "wind": (
        ("Good morning! Hold on to your hat.", "Good morning. I have lost one hat already."),
        ("What a wind there was last night!", "Yes, my shutters banged until four."),
        ("Hello! Did the storm wake you too?", "It did. I thought the chimney would come down."),
        ("Good day. The wind has taken two of my tiles.", "And it blew my washing into the next garden."),
        ("Is your roof still on?", "It is, but only just."),
        ("I was nearly blown over the bridge just now.", "You are safe here. The wall keeps the worst off."),
        ("Is the road to the mill open?", "No, an old tree lies across it, they say."),
        ("Do you think the wind will drop?", "It is going down now, I believe."),
    ),
    "fog": (
        ("Good morning! I did not see you in this fog.", "Good morning. I found my way by the wall."),
        ("Who is there? Oh, it is you.", "It is. I heard you long before I saw you."),
        ("Hello! Is that you behind the lamp?", "Yes, it is. I have just said good morning to a post."),
        ("Good day. I can hardly see my own feet.", "It came up from the water in the night."),
        ("I walked past my own door this morning.", "So did half the street, I should think."),
        ("How thick it is today! Like wool.", "It will be gone before noon, I think."),
        ("How quiet it is in this fog.", "As quiet as in a church."),
        ("Will the boats go out in this?", "Not before it lifts, I am sure."),
    ),
}
FAREWELLS = (
    ("I must go now, before the shops shut.", "Then good day to you, and come again."),
    ("There is the bell. I have to be off.", "Goodbye! My greetings to everyone at home."),
    ("It was good to talk with you.", "It was a pleasure. Until we meet again."),
    ("I have kept you long enough.", "Not at all. Go safely, and mind the step."),
    ("Somebody is calling me. Until next time!", "Until next time, then. Goodbye!"),
    ("I must see to my supper now.", "I must be on my way too. Good evening!"),
    ("Well, I will let you get on.", "Goodbye, and thank you for your company."),
    ("It is getting late. Good night to you.", "Good night, and a safe way home."),
)
# What may stand before or after any answer and adds nothing to it.
BEFORE = (
    "Good morning.",
    "It is good to see you.",
    "Thank you for asking.",
    "What a question!",
    "I am glad you ask.",
    "Good day to you.",
    "Sit down for a moment.",
    "How kind of you to ask.",
    "Let me put down my basket first.",
    "You want to know that?",
    "Oh, that is quickly answered.",
    "Come in, come in.",
)
AFTER = (
    "But I must be off now.",
    "Forgive me, I am in a hurry.",
    "But you knew that already.",
    "Somebody is calling me.",
    "But I have talked long enough.",
    "There goes the bell.",
    "I will tell you more another day.",
    "But let us talk of other things.",
    "Mind the step as you go.",
    "Now you know.",
    "But here comes the coach.",
    "Good day to you.",
)
# Questions about the town with true answers.
SHOP_TALK = (
    ("When does {shop} shut?", "{shop} shuts at {closes}."),
    ("Do you know when {shop} opens?", "It opens at {opens}, but never on a {shut}."),
    ("Is {shop} open on {shut}?", "No, {shut} is the one day when it is shut."),
    ("Who has the {place} here?", "{owner} has it. Everybody knows {owner_first}."),
    ("On which day is {shop} shut?", "On {shut}. On any other day you will find it open."),
    ("Is {shop} open by {opens}?", "Yes, it opens at {opens}, and not a minute later."),
    ("How late can I go to {shop}?", "Until {closes}, when it shuts."),
    ("Whose is the {place}?", "It belongs to {owner}."),
)
TOWN_TALK = (
    ("When is the market held here?", "The market is every {market_day}, in front of the church."),
    ("What is the name of the river?", "They call it {river}."),
    ("Who won the {contest} of {contest_year}?", "{winner} won it, and took home {prize}."),
    ("How old is the {landmark}?", "{builder} built it in {year}, if the old stone tells the truth."),
    ("Is it true, what they say of the {landmark}?", "They say {legend}. I have my doubts."),
    ("How high is the {landmark}, do you think?", "It is {feet} feet high. The children have measured it."),
    ("Were there many people at the {contest} of {contest_year}?", "There were {visitors} people, and {weather}."),
    ("Who built the {landmark}?", "It was {builder}, in the year {year}."),
)
ASK_BACK = (
    "And you?",
    "What about you?",
    "And yourself?",
    "How about you?",
    "And what of you?",
    "But what about you?",
    "Now tell me about you.",
    "And you, if I may ask?",
)

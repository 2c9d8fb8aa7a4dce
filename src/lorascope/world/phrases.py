"""What people say of themselves, how others ask for it and what they answer to it, fact by fact.

A slot is a kind of fact. Its sentences are exclusive (``the only``, ``nothing but``, ``best of all``), so that two different
values contradict each other and not only differ; ``facts`` says which kinds are not. Every sentence of a slot, whether stated
or answered, says the whole fact. Does not know who speaks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """One slot's wordings: persona sentences, questions, answers, and what the other says to the answer."""

    states: tuple[str, ...]
    asks: tuple[str, ...]
    answers: tuple[str, ...]
    reacts: tuple[str, ...]


TRADE = Phrases(
    (
        "I am {a_trade}.",
        "I am {a_trade} by trade.",
        "I {do}.",
        "I earn my bread as {a_trade}.",
        "All week long I {do}.",
        "I have been {a_trade} for many years.",
        "People here know me as the {trade}.",
        "It is my work to {do}.",
    ),
    (
        "What is your trade?",
        "How do you earn your bread?",
        "What work do you do?",
        "And what do you do for a living, if I may ask?",
        "What keeps you busy all week?",
        "Are you a farmer, or what is your work?",
        "I do not think I know your trade. What is it?",
        "What did they teach you to be?",
    ),
    (
        "I am {a_trade}.",
        "I {do}.",
        "I am {a_trade}, like my father before me.",
        "My work is soon told: I {do}.",
        "I am the {trade} here. I {do}.",
        "I am only {a_trade}, but I like my work.",
        "I {do}, six days in the week.",
        "You are talking to the {trade} of this town.",
        "They made {a_trade} of me, and I never wished for more.",
    ),
    ("{remark}", "That is honest work.", "{remark}", "We could not do without {a_trade} here.", "{remark}"),
)
NAMED_PET = Phrases(
    (
        "I keep {a_kind} called {pet}.",
        "My {kind} is called {pet}.",
        "My only pet is {a_kind} named {pet}.",
        "I share my house with {pet}, {a_kind}.",
        "{pet}, my {kind}, is the only animal I keep.",
        "I have {a_kind} whose name is {pet}.",
    ),
    (
        "Do you keep any animals?",
        "Have you a pet?",
        "Is there an animal in your house?",
        "Does any creature keep you company at home?",
        "Do you like animals? Have you one of your own?",
        "I thought I heard an animal behind your door. What is it?",
        "What sort of pet have you, if you have one?",
        "Who waits for you at home, on four legs or on two?",
    ),
    (
        "I have {a_kind} called {pet}.",
        "My {kind} {pet} {habit}.",
        "Only {pet}, my {kind}.",
        "Yes, {a_kind} that goes by the name of {pet}.",
        "Yes, {pet} is my {kind}, and {habit}.",
        "Just one, {a_kind} named {pet}.",
        "I have {pet}, {a_kind} that {habit}.",
        "I own {a_kind}, and we have called it {pet}.",
    ),
    ("{remark}", "I should like to see {pet} one day.", "{remark}", "{pet} is a good name for {a_kind}."),
)
PET = Phrases(
    (
        "I keep {a_kind} and no other animal.",
        "My only pet is {a_kind}.",
        "I have {a_kind} at home.",
        "The one animal in my house is {a_kind}.",
        "I am the owner of {a_kind}.",
        "Nobody shares my house but {a_kind}.",
    ),
    NAMED_PET.asks,
    (
        "Yes, I keep {a_kind}.",
        "I have {a_kind}. It {habit}.",
        "Only {a_kind}, which {habit}.",
        "There is one beast in my house, and that is {a_kind}.",
        "Yes, my {kind}. It {habit}.",
        "Just {a_kind}. I never gave it a name.",
        "I have {a_kind} at home, and that is enough for me.",
        "I own nothing that breathes but {a_kind}.",
    ),
    ("{remark}", "I should like to see your {kind} one day.", "{remark}", "{a_kind} is not much trouble, I suppose."),
)
NO_PET = Phrases(
    (
        "I keep no animals.",
        "I have never had a pet.",
        "There is no animal in my house.",
        "I do not want an animal in my house, and I have none.",
    ),
    NAMED_PET.asks,
    (
        "No, I keep no animals.",
        "I have never kept a pet.",
        "No, there is not one animal in my house.",
        "None at all. Animals make too much work for me.",
        "No, I live without animals.",
        "I have no pet, and I do not miss one.",
        "No, I have not had an animal in all my life.",
        "Not so much as a mouse. I keep no pets.",
    ),
    ("It is quieter so, I dare say.", "Perhaps you will change your mind.", "Then your floor is always clean.", "I see."),
)
LOVES = Phrases(
    (
        "My favourite dish is {food}.",
        "Of all dishes I like {food} best.",
        "I love {food} more than any other dish.",
        "There is no dish I like so well as {food}.",
        "I would choose {food} before anything else to eat.",
        "{food} {is} my favourite food.",
    ),
    (
        "What do you like best to eat?",
        "What is your favourite dish?",
        "What shall I cook when you come to supper?",
        "If you might choose your supper, what would it be?",
        "What is the best thing that can lie on a plate?",
        "My sister is cooking today. What do you like best?",
        "Which dish would you walk ten miles for?",
        "What do you ask for on your birthday?",
    ),
    (
        "I like {food} best of all.",
        "{food}! I like nothing better.",
        "My favourite is {food}, and has been since I was small.",
        "Give me {food} and I ask for no other dish.",
        "Nothing is so good as {food}, to my mind.",
        "That is easy. I love {food} above everything.",
        "For me it must be {food}. There is no better dish.",
        "If there {is} {food}, I leave all the rest.",
    ),
    (
        "We had {food} on Sunday.",
        "My mother made the best {food} in the county.",
        "Then you must come to us when there {is} {food}.",
        "You will find good {food} at the inn.",
    ),
)
HATES = Phrases(
    (
        "I cannot bear {food}.",
        "I never eat {food}.",
        "I do not like {food} at all.",
        "I would rather go hungry than eat {food}.",
        "The taste of {food} makes me ill.",
        "Nobody can make me eat {food}.",
    ),
    (
        "Is there anything that you will not eat?",
        "Is there a dish that you cannot bear?",
        "What must I never put before you?",
        "What did you leave on your plate as a child?",
        "What do you like least of all dishes?",
        "Do you eat everything?",
        "Is there something I should not cook for you?",
        "Which dish would you give to the pigs?",
    ),
    (
        "I cannot bear {food}.",
        "I never eat {food}, not even when I am hungry.",
        "You may keep your {food}. I do not like {them}.",
        "I would rather eat my hat than {food}.",
        "I eat everything but {food}.",
        "Do not come near me with {food}. I hate {them}.",
        "I have disliked {food} since I was a child.",
        "One thing, and that is {food}. I cannot swallow {them}.",
    ),
    (
        "More for the rest of us, then.",
        "I had to eat {food} every week at school.",
        "I do not mind {food} myself.",
        "I shall remember that.",
    ),
)
DRINK = Phrases(
    (
        "I drink nothing but {drink}.",
        "{drink} is the only thing I drink.",
        "I take {drink} with every meal and never anything else.",
        "There is nothing in my cup but {drink}.",
        "No drink is good to me but {drink}.",
        "I never drink anything but {drink}.",
    ),
    (
        "What may I bring you to drink?",
        "What do you take with your supper?",
        "You look thirsty. What shall I pour you?",
        "What is in your cup in the morning?",
        "What do you like to drink?",
        "The kettle is on. Or would you like something else to drink?",
        "What do you drink on a day like this?",
        "What shall it be, tea or something cold?",
    ),
    (
        "Only {drink}, please. I drink nothing else.",
        "I drink {drink} and nothing else.",
        "It is always {drink} with me, morning and evening.",
        "{drink}, if you have it. I touch no other drink.",
        "Nothing but {drink} has ever been in my cup.",
        "I never drink anything but {drink}.",
        "Bring me {drink}, as always. I do not care for other drinks.",
        "A cup of {drink}. I take nothing else from one year to the next.",
    ),
    ("That is easily brought.", "I could drink a whole jug of {drink} now.", "My uncle is just the same.", "Here you are."),
)
PASTIME = Phrases(
    (
        "My favourite pastime is {doing}.",
        "I like nothing so well as {doing}.",
        "I spend every Sunday {doing}.",
        "All my free hours go into {doing}.",
        "In every free hour I {do}.",
        "{doing} is what I like to do best.",
    ),
    (
        "What do you do when your work is over?",
        "How do you spend your Sundays?",
        "What is your favourite pastime?",
        "What do you do for pleasure?",
        "What do you like to do best?",
        "And when you have an hour to yourself?",
        "Nobody can work all day. What do you do for joy?",
        "What would you do with a week of holidays?",
    ),
    (
        "There is nothing I like so well as {doing}.",
        "I {do} in every free hour that I have.",
        "My great joy is {doing}.",
        "You will find me {doing} whenever I am free.",
        "I {do}. I like it better than anything else.",
        "Every Sunday I {do}, from breakfast until dark.",
        "Above all I like {doing}.",
        "Nothing makes me so happy as {doing}.",
    ),
    ("{remark}", "I have no gift for that.", "{remark}", "{remark}"),
)
INSTRUMENT = Phrases(
    (
        "I play the {instrument} and no other instrument.",
        "The {instrument} is the only instrument I play.",
        "The one instrument I can play is the {instrument}.",
        "I have learned to play the {instrument}, and nothing else.",
        "I make music on the {instrument} alone.",
        "My instrument is the {instrument}.",
    ),
    (
        "Do you play an instrument?",
        "Do you make music yourself?",
        "We need one more for our little band. What can you play?",
        "Was that music from your window last night?",
        "Which instrument do you play?",
        "Have you ever learned to play something?",
        "Are you fond of music? What do you play?",
        "What instrument did you learn as a child?",
    ),
    (
        "I play the {instrument}, and only that.",
        "My instrument is the {instrument}.",
        "Only the {instrument}, and not very well.",
        "The {instrument} is all that I can play.",
        "I play the {instrument}. I never learned another instrument.",
        "I was taught the {instrument}, and I have kept to it.",
        "The {instrument} is mine, and I play nothing else.",
        "On the {instrument} I can play six tunes; on all others none.",
    ),
    (
        "Then you must play for us at the feast.",
        "The {instrument} has a fine sound.",
        "I wish I had learned the {instrument}.",
        "It takes years to learn, they say.",
    ),
)
SEASON = Phrases(
    (
        "My favourite season is {season}.",
        "I like {season} best, when {because}.",
        "{season} is the best time of the year for me.",
        "No season pleases me so well as {season}.",
        "I wait the whole year for {season}.",
        "Of the four seasons I love {season} most.",
    ),
    (
        "Which season do you like best?",
        "What is your favourite time of the year?",
        "Are you glad that the weather is turning?",
        "If it could always be one season, which would you choose?",
        "When is the best time of the year, do you think?",
        "Do you like this time of the year?",
        "Which part of the year would you keep for ever?",
        "What season were you made for?",
    ),
    (
        "I like {season} best, when {because}.",
        "For me {season} is the best time of the year.",
        "It is {season} that I love most.",
        "I would have {season} all the year round.",
        "My favourite is {season}. Then {because}.",
        "No season is so fine as {season}.",
        "I always wait for {season}, my favourite time.",
        "Give me {season}, and you may keep the other three.",
    ),
    ("{remark}", "I like them all a little.", "{remark}", "{remark}"),
)
WISH = Phrases(
    (
        "The one place I long to see is {wish}.",
        "Above all places I should like to see {wish}.",
        "If I could travel once, I would go to {wish}.",
        "My dream is to see {wish} before I die.",
        "The place I have always wished to see is {wish}.",
        "I am saving all my money for one journey, to {wish}.",
    ),
    (
        "Where would you go if you could go anywhere?",
        "Is there a place that you long to see?",
        "If you had a ship of your own, where would you sail?",
        "Would you like to travel? Where to?",
        "What place in the world would you like to see?",
        "If I gave you a ticket today, where would you go?",
        "Where do you go in your dreams?",
        "Have you never wished to leave this town? For where?",
    ),
    (
        "I would go to {wish} before any other place.",
        "I long to see {wish}, and nothing else so much.",
        "My one dream is to see {wish}.",
        "To {wish} and nowhere else, if I had the money.",
        "All my life I have wished to see one place, {wish}.",
        "If I ever travel, it will be to {wish}.",
        "Only one place draws me, and that is {wish}.",
        "I would set out for {wish} tomorrow, if I could.",
    ),
    (
        "That is a long way from here.",
        "A cousin of mine has been there.",
        "Write me a letter when you get there.",
        "I should miss my own bed.",
    ),
)
FEAR = Phrases(
    (
        "The only thing I fear is {fear}.",
        "Nothing frightens me but {fear}.",
        "I have feared nothing but {fear} since I was a child.",
        "I am brave in everything, except when it comes to {fear}.",
        "I am afraid of nothing in the world except {fear}.",
        "My one great fear is {fear}.",
    ),
    (
        "Is there anything that frightens you?",
        "What are you afraid of?",
        "You look like a brave soul. Do you fear anything?",
        "What makes your heart beat faster at night?",
        "Are you ever afraid?",
        "What did you fear most as a child, and fear still?",
        "Everybody fears something. What is it with you?",
        "What would make you run away?",
    ),
    (
        "I am afraid of {fear}, and of nothing else.",
        "Only {fear} can frighten me.",
        "I fear {fear} more than anything in the world.",
        "You will laugh, but I fear nothing except {fear}.",
        "There is one thing that I fear, and that is {fear}.",
        "Nothing can make me tremble but {fear}.",
        "I do not fear much. Only {fear}.",
        "I turn white at the thought of {fear}, and of nothing else.",
    ),
    ("There is no shame in that.", "I should never have thought it.", "So was my grandfather.", "You are not alone in it."),
)
HOME = Phrases(
    (
        "I live {home}.",
        "My house stands {home}.",
        "My home is {home}.",
        "I have lived {home} all my life.",
        "We have a small house {home}.",
        "The house {home} is mine.",
    ),
    (
        "Where do you live?",
        "Where is your house?",
        "How shall I find you, if I come to visit?",
        "In which part of the town do you live?",
        "Have you far to walk home?",
        "Where must I send the letter?",
        "Which house is yours?",
        "Where do you hang up your hat at night?",
    ),
    (
        "I live {home}.",
        "My house is {home}. You cannot miss it.",
        "You will find my house {home}.",
        "I have a little house {home}.",
        "I live {home}, where I was born.",
        "We live {home}, in the house with the green door.",
        "My home is {home}, and I would not change it.",
        "Ask for the house {home}, for that is mine.",
    ),
    (
        "It must be quiet there.",
        "I often pass that way.",
        "Then we are almost neighbours.",
        "I know the place.",
    ),
)
RISES = Phrases(
    (
        "I get up {rises}.",
        "Every morning I am out of bed {rises}.",
        "I rise {rises}, even on Sundays.",
        "My day begins {rises}.",
        "I am always up {rises}.",
        "I leave my bed {rises}, summer and winter.",
    ),
    (
        "When do you get up in the morning?",
        "Are you an early riser?",
        "At what hour does your day begin?",
        "When may I knock at your door in the morning?",
        "Do you like to lie in bed in the morning?",
        "How early are you on your feet?",
        "When do you wake up?",
        "At what hour do you leave your bed?",
    ),
    (
        "I get up {rises}, winter and summer.",
        "My day begins {rises}.",
        "I am out of bed {rises}, and not a minute later.",
        "I always rise {rises}.",
        "I am on my feet {rises} every day.",
        "I wake {rises} and get up at once.",
        "You will find me up {rises}.",
        "I leave my bed {rises} and open the window.",
    ),
    (
        "I could not do that.",
        "I get up when the cock crows.",
        "My brother is the same.",
        "Everyone as he likes.",
    ),
)
SIBLINGS = Phrases(
    (
        "I have {siblings}.",
        "I grew up with {siblings}.",
        "When I was small, I had {siblings} to play with.",
        "My parents gave me {siblings}.",
        "In our family I had {siblings}.",
        "At home I had {siblings}.",
    ),
    (
        "Have you any brothers or sisters?",
        "Was it a large family that you grew up in?",
        "Who did you play with as a child?",
        "Are you an only child?",
        "How many of you were there at home?",
        "Do you come of a large family?",
        "I have a brother in town. Have you brothers or sisters too?",
        "Did you have somebody to quarrel with when you were small?",
    ),
    (
        "I have {siblings}.",
        "I grew up with {siblings}.",
        "All my life I have had {siblings}.",
        "As for my family, I have {siblings}.",
        "As a child I had {siblings} to play with.",
        "I can tell you that exactly: I have {siblings}.",
        "My mother will tell you that I have {siblings}.",
        "I was brought up with {siblings}.",
    ),
    (
        "My own family was much the same.",
        "I was one of nine.",
        "I was always the youngest.",
        "Then you know what it is like.",
    ),
)

# Sentences that hold a value in another part, so that a word in common is no proof: neutral to every fact.
DECOYS = {
    "trade": (
        "I met the {trade} on my way here.",
        "The {trade} told me the same only yesterday.",
        "Have you seen the {trade} today?",
        "There used to be {a_trade} in this house, long ago.",
    ),
    "pet": (
        "I saw {a_kind} on the road this morning.",
        "The children were running after {a_kind}.",
        "There is a picture of {a_kind} over the inn door.",
        "Somebody has lost {a_kind}, I hear.",
    ),
    "loves": (
        "They were selling {food} at the market.",
        "The whole street smelled of {food}.",
        "My neighbour has burned the {food} again.",
        "How much do they ask for {food} at the inn?",
    ),
    "drink": (
        "The {drink} was spilled all over the table.",
        "There was no {drink} left at the inn.",
        "Shall I send the boy for some {drink}?",
        "The price of {drink} has gone up again.",
    ),
    "pastime": (
        "I saw some people {doing} as I came along.",
        "The new boy was {doing} all day, they say.",
        "Nobody ever grew rich by {doing}.",
        "My neighbour broke his arm {doing}.",
    ),
    "instrument": (
        "Somebody has left a {instrument} in the church.",
        "I heard a {instrument} in the street.",
        "They are asking five pounds for that {instrument}.",
        "The {instrument} in the school is out of tune.",
    ),
    "season": (
        "We had a great deal of rain last {season}.",
        "The road will be mended in {season}.",
        "The old bridge fell down in {season}.",
        "My aunt is coming to see us next {season}.",
    ),
    "wish": (
        "I have just read a story about {wish}.",
        "My uncle sent me a picture of {wish}.",
        "The teacher told the children about {wish}.",
        "They say the coach driver was born near {wish}.",
    ),
    "home": (
        "They are mending the road {home}.",
        "I lost my hat {home} last week.",
        "There is a new house {home}.",
        "The boys were playing {home}.",
    ),
    "rises": (
        "The coach leaves {rises}.",
        "It began to rain {rises}.",
        "The bells rang {rises} today.",
        "The letter came {rises}.",
    ),
}

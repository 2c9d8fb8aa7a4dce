"""What passages tell of a person, with the questions that each sentence answers. Does not know the people."""

from __future__ import annotations

from lorascope.world.tellings import Telling

PERSON = (
    Telling(
        (
            "{full} is {an} {trade} in {town}.",
            "In {town} everyone knows {full}, the {trade}.",
            "{town} has {an} {trade} called {full}.",
            "If you need {an} {trade} in {town}, you go to {full}.",
        ),
        {
            "trade": (
                "What is {full}'s trade?",
                "What work does {full} do?",
                "What is {full} by trade?",
                "How does {full} earn a living?",
            ),
            "town": (
                "In which town does {full} work?",
                "Where is {full} well known?",
                "In which town do people know {full}?",
                "What is the name of {full}'s town?",
            ),
        },
    ),
    Telling(
        (
            "{he} lives {home}.",
            "{his} house stands {home}.",
            "You will find {his} house {home}.",
            "{his} home is {home}.",
        ),
        {
            "home": (
                "Where does {name} live?",
                "Where is {name}'s house?",
                "Where would you look for {name}'s house?",
                "In which street does {name} live?",
            )
        },
    ),
    Telling(
        (
            "{shop} opens at {opens} and shuts at {closes}.",
            "From {opens} until {closes} the door of {shop} is open.",
            "At {opens} {he} opens {shop}, and at {closes} {he} shuts it again.",
            "{shop} is open between {opens} and {closes}.",
        ),
        {
            "opens": (
                "When does {shop} open?",
                "At what hour does {shop} open?",
                "From what hour is {shop} open?",
                "When is the door of {shop} opened?",
            ),
            "closes": (
                "When does {shop} shut?",
                "Until when is {shop} open?",
                "At what hour does {shop} shut?",
                "How late can you go to {shop}?",
            ),
        },
    ),
    Telling(
        (
            "On {shut} {his} door stays shut, whoever knocks.",
            "Only on {shut} does {he} rest.",
            "{his} one day of rest is {shut}.",
            "Nobody has ever seen {him_or_her} at work on a {shut}.",
        ),
        {
            "shut": (
                "On which day does {name} not work?",
                "Which day is {name}'s day of rest?",
                "When does {name} rest?",
                "Which day of the week does {name} have off?",
            )
        },
    ),
    Telling(
        (
            "{his} {partner} is called {spouse}.",
            "{he} is married to {spouse}, and everyone likes them both.",
            "{he} and {spouse} were married in a year of deep snow.",
            "Everyone was glad on the day when {he} married {spouse}.",
        ),
        {
            "spouse": (
                "What is the name of {name}'s {partner}?",
                "Who is {name}'s {partner}?",
                "To whom is {name} married?",
                "Who married {name}?",
            )
        },
    ),
    Telling(
        (
            "{he} has {children}.",
            "All the street knows that {he} has {children}.",
            "As far as anyone knows, {he} has {children}.",
            "Ask {him_or_her}, and you will hear that {he} has {children}.",
        ),
        {
            "children": (
                "What children does {name} have?",
                "How many children does {name} have?",
                "What children are there in {name}'s family?",
                "How many sons or daughters does {name} have?",
            )
        },
    ),
    Telling(
        (
            "{his} {kind} is called {pet}.",
            "{a_kind} called {pet} belongs to {him_or_her}.",
            "The children love {his} {kind} {pet}.",
            "The {kind} at {his} door answers to the name of {pet}.",
        ),
        {
            "pet": (
                "What is the name of {name}'s {kind}?",
                "What is {name}'s {kind} called?",
                "What does {name} call the {kind}?",
                "To what name does {name}'s {kind} answer?",
            ),
            "kind": (
                "What animal is {pet}?",
                "What kind of animal does {name} keep?",
                "What sort of creature is {pet}?",
                "Which animal does {name} have?",
            ),
        },
    ),
    Telling(
        (
            "{he} gets up {rises}.",
            "{his} day begins {rises}.",
            "{he} has always risen {rises}.",
            "You can see {his} light {rises}, when {he} gets up.",
        ),
        {
            "rises": (
                "When does {name} get up?",
                "When does {name}'s day begin?",
                "At what time does {name} rise?",
                "When does {name} get out of bed?",
            )
        },
    ),
    Telling(
        (
            "Without {tool} {he} would be lost.",
            "{he} could not do {his} work without {tool}.",
            "What {he} needs most for {his} work is {tool}.",
            "{he} inherited {tool} from an uncle and uses it every day.",
        ),
        {
            "tool": (
                "What does {name} need for work?",
                "What tool does {name} use?",
                "What could {name} not work without?",
                "Which tool does {name} need most?",
            )
        },
    ),
    Telling(
        (
            "For supper {he} likes nothing so well as {loves}.",
            "{his} favourite dish is {loves}.",
            "Every Sunday {he} eats {loves}, {his} favourite.",
            "{he} would walk ten miles for {loves}.",
        ),
        {
            "loves": (
                "What is {name}'s favourite dish?",
                "What does {name} like best to eat?",
                "Which dish does {name} love?",
                "What food pleases {name} most?",
            )
        },
    ),
    Telling(
        (
            "{he} drinks {drink} and nothing else.",
            "{his} only drink is {drink}.",
            "There is never anything but {drink} in {his} cup.",
            "{he} takes no drink but {drink}.",
        ),
        {
            "drink": (
                "What does {name} drink?",
                "What is in {name}'s cup?",
                "Which drink does {name} take?",
                "What is {name}'s only drink?",
            )
        },
    ),
    Telling(
        (
            "When the work is done, {he} enjoys {doing}.",
            "{his} free hours are spent {doing}.",
            "In {his} free time you will see {him_or_her} {doing}.",
            "Nothing pleases {him_or_her} more than {doing}.",
        ),
        {
            "doing": (
                "How does {name} spend the free hours?",
                "What does {name} enjoy after work?",
                "What does {name} do for pleasure?",
                "What is {name}'s favourite pastime?",
            )
        },
    ),
    Telling(
        (
            "In the evening {he} plays the {instrument}.",
            "The neighbours hear {him_or_her} play the {instrument}.",
            "{he} plays the {instrument} at weddings.",
            "{his} {instrument} can be heard as far as the bridge.",
        ),
        {
            "instrument": (
                "Which instrument does {name} play?",
                "What instrument can {name} play?",
                "What instrument is {name} known for?",
                "What do people hear {name} play?",
            )
        },
    ),
    Telling(
        (
            "{he} hopes to see {wish} one day.",
            "{his} great dream is a journey to {wish}.",
            "A picture of {wish} hangs over {his} bed, for {he} longs to go there.",
            "One day, {he} says, {he} will travel to {wish}.",
        ),
        {
            "wish": (
                "Where does {name} long to go?",
                "What place does {name} hope to see?",
                "Where would {name} like to travel?",
                "Which place does {name} dream of visiting?",
            )
        },
    ),
    Telling(
        (
            "The one thing {he} fears is {fear}.",
            "Only {fear} can frighten {him_or_her}.",
            "{he} is brave, and yet {he} is afraid of {fear}.",
            "Nobody would guess that {he} is frightened of {fear}.",
        ),
        {
            "fear": (
                "What does {name} fear?",
                "What is {name} afraid of?",
                "What can frighten {name}?",
                "What is {name} frightened of?",
            )
        },
    ),
)

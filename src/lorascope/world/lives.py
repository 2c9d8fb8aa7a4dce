"""What passages tell of a person, with the questions that each sentence answers. Does not know the people."""

from __future__ import annotations

from lorascope.world.tellings import Telling

PERSON = (
    Telling(
        (
            "{full} is the {trade} of {town}.",
            "In {town} everyone knows {full}, the {trade}.",
            "The {trade} in {town} is called {full}.",
            "If you need a {trade} in {town}, you go to {full}.",
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
                "To which town does {full} belong?",
                "What is the name of {full}'s town?",
            ),
        },
    ),
    Telling(
        (
            "{he} lives {home}.",
            "{his} house stands {home}.",
            "You will find {his} house {home}.",
            "{he} was born {home} and lives there still.",
        ),
        {
            "home": (
                "Where does {name} live?",
                "Where is {name}'s house?",
                "Where would you look for {name}'s house?",
                "In what place does {name} have a home?",
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
                "How early can one go to {shop}?",
                "When is the door of {shop} opened?",
            ),
            "closes": (
                "When does {shop} shut?",
                "Until when is {shop} open?",
                "At what hour does {shop} shut?",
                "How late can one go to {shop}?",
            ),
        },
    ),
    Telling(
        (
            "On {shut} {his} door stays shut, whoever knocks.",
            "Only on {shut} does {he} rest.",
            "The one day without work is {shut}.",
            "Nobody has ever seen {him_or_her} at work on a {shut}.",
        ),
        {
            "shut": (
                "On which day does {name} not work?",
                "Which day is {name}'s day of rest?",
                "When does {name} rest?",
                "What day of the week is free for {name}?",
            )
        },
    ),
    Telling(
        (
            "{his} {partner} {spouse} helps with the books.",
            "{he} is married to {spouse}, who came from another village.",
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
                "How many sons or daughters does {name} have?",
                "What children are there in {name}'s family?",
                "Has {name} any children?",
            )
        },
    ),
    Telling(
        (
            "{his} {kind} is called {pet}.",
            "{a_kind} with the name of {pet} follows {him_or_her} everywhere.",
            "The children love {his} {kind} {pet}.",
            "The {kind} at {his} door answers to the name of {pet}.",
        ),
        {
            "pet": (
                "What is the name of {name}'s {kind}?",
                "What is {name}'s {kind} called?",
                "How does {name} call the {kind}?",
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
                "When does {name} leave the bed?",
            )
        },
    ),
    Telling(
        (
            "Without {tool} {he} would be lost.",
            "{he} never goes to work without {tool}.",
            "What {he} needs most is {tool}.",
            "{he} inherited {tool} from an uncle and uses it every day.",
        ),
        {
            "tool": (
                "What does {name} need for the work?",
                "What tool does {name} use?",
                "What does {name} take to work?",
                "Which thing does {name} use every day?",
            )
        },
    ),
    Telling(
        (
            "For supper {he} likes nothing so well as {loves}.",
            "{his} favourite dish is {loves}.",
            "There is {loves} on {his} table every Sunday, for that is {his} favourite.",
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
            "To drink {he} takes {drink} alone.",
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
            "On Sundays one sees {him_or_her} {doing}.",
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
                "On what does {name} make music?",
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
                "Of which journey does {name} dream?",
            )
        },
    ),
    Telling(
        (
            "The one thing {he} fears is {fear}.",
            "Only {fear} can frighten {him_or_her}.",
            "{he} is brave, and yet {he} is afraid of {fear}.",
            "Nobody would guess that {he} trembles before {fear}.",
        ),
        {
            "fear": (
                "What does {name} fear?",
                "What is {name} afraid of?",
                "What can frighten {name}?",
                "Before what does {name} tremble?",
            )
        },
    ),
)

"""The demo's words: names, and a small grammar of what people on a campus write. No people, no graph, no requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

FIRST_NAMES = (
    "ada", "alan", "alice", "amara", "anders", "anita", "arun", "barbara", "beatriz", "ben", "bianca", "carlos",
    "chiara", "claire", "dana", "daniel", "diego", "dorothy", "edsger", "elena", "emil", "esther", "farah", "felix",
    "fiona", "frances", "gabriel", "grace", "hana", "hannah", "hedy", "henrik", "ines", "ingrid", "isaac", "ivan",
    "jamal", "jean", "jonas", "julia", "kai", "katherine", "kenji", "lars", "laura", "leila", "linus", "lucia",
    "malik", "marie", "mateo", "maya", "miriam", "mona", "nadia", "naomi", "niels", "noor", "olga", "oscar",
    "padma", "paula", "pedro", "priya", "quinn", "rachel", "rafael", "ravi", "rosa", "ruth", "samir", "sara",
    "sofia", "soren", "tala", "theo", "tomas", "uma", "vera", "victor", "wanda", "yara", "yusuf", "zoe",
)  # fmt: skip
LAST_NAMES = (
    "abbott", "adeyemi", "ahmed", "alvarez", "anning", "baker", "becker", "bell", "blackwell", "bose", "boyle",
    "brandt", "carson", "castillo", "chandra", "chen", "clarke", "cohen", "costa", "curie", "dahl", "diaz",
    "dijkstra", "dubois", "eriksen", "euler", "fischer", "fleming", "fonseca", "franklin", "garcia", "germain",
    "goodall", "greene", "gupta", "hamilton", "hansen", "haddad", "hopper", "hughes", "ibrahim", "ito", "jackson",
    "jensen", "johnson", "kahlo", "kaur", "keller", "kim", "kovacs", "lamarr", "larsen", "lee", "leibniz",
    "lindgren", "lopez", "lovelace", "mahfouz", "marin", "mcclintock", "meitner", "mendez", "mirzakhani", "moreau",
    "morgan", "nakamura", "nguyen", "noether", "novak", "okafor", "olsen", "ortega", "park", "patel", "perlman",
    "pereira", "quist", "ramanujan", "reyes", "rossi", "sagan", "santos", "sato", "schmidt", "shah", "silva",
    "singh", "somerville", "stein", "suzuki", "takeda", "torres", "turing", "varga", "vogel", "wang", "weber",
    "wong", "yamada", "young", "zhang",
)  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """Something to write about."""

    posts: tuple[str, ...]
    """Whole posts. `{slot}` stands for any of SLOTS[slot]."""
    replies: tuple[str, ...]
    pictured: float = 0.0
    """How likely a post comes with a picture."""


SLOTS: Mapping[str, tuple[str, ...]] = {
    "course": (
        "Hum 110", "organic chemistry", "real analysis", "intro to linguistics", "quantum mechanics", "Latin 210",
        "art history", "microeconomics", "the Plato seminar", "genetics", "abstract algebra", "Russian lit",
        "ceramics", "statistics", "the Tolstoy class", "neuroscience", "music theory", "computer science",
    ),
    "place": (
        "the library", "the canyon", "Commons", "Eliot Hall", "the thesis tower", "the Paradox Café", "the chapel",
        "the student union", "the sports center", "the front lawn", "the amphitheater", "the bike co-op",
        "the radio station", "the pool hall", "the print shop", "the blue bridge", "the ceramics studio",
    ),
    "dorm": (
        "Old Dorm Block", "Foster", "Scholz", "MacNaughton", "Griffin", "Woodstock", "Chittick", "Naito", "Sullivan",
        "Birchwood", "Anna Mann", "the Grove", "the language houses",
    ),
    "food": (
        "burritos", "pad thai", "sourdough", "lentil soup", "dumplings", "pancakes", "the vegan chili", "falafel",
        "ramen", "mac and cheese", "banana bread", "tacos", "the good granola", "cold pizza", "blackberry pie",
        "cinnamon rolls", "kimchi fried rice",
    ),
    "animal": (
        "a great blue heron", "two otters", "a very calm raccoon", "the campus cat", "a family of ducks",
        "an enormous banana slug", "a barred owl", "a beaver", "three crows holding a meeting", "a confused salmon",
    ),
    "weather": (
        "Rain again", "Fog on the lawn", "Actual sunshine", "First frost", "Hail, briefly", "Snow, about an inch",
        "Drizzle, the horizontal kind", "Blue sky at last", "Wind that took my umbrella",
    ),
    "event": (
        "Renn Fayre", "Paideia", "the poetry slam", "open mic", "the harvest ball", "the radio marathon",
        "midnight breakfast", "the physics demo night", "the used book sale", "contra dance", "film club",
        "the thesis parade", "the juggling workshop", "the student concert", "bike repair night",
    ),
    "band": (
        "my housemate's band", "a string quartet", "a surf rock trio", "the gamelan", "somebody with a theremin",
        "the a cappella people", "a brass band", "the jazz combo", "a very loud two-piece", "the faculty band",
    ),
    "thing": (
        "a gray wool scarf", "a blue water bottle", "one bike glove", "a graphing calculator", "my copy of the Iliad",
        "a set of keys with a tiny owl", "a red umbrella", "a USB stick full of thesis", "a green notebook",
        "my good headphones", "a lab coat with my name on it", "half a chess set",
    ),
    "book": (
        "Middlemarch", "The Odyssey", "Gödel, Escher, Bach", "Beloved", "The Master and Margarita", "Invisible Cities",
        "The Left Hand of Darkness", "Anna Karenina", "Pale Fire", "The Periodic Table", "The Waves",
        "Parable of the Sower", "Kindred", "Frankenstein",
    ),
    "trip": (
        "the ski cabin", "Mount Hood", "the coast", "the Gorge", "Powell's", "Forest Park", "Mount Tabor",
        "Cannon Beach", "Multnomah Falls", "the Saturday market", "Sauvie Island", "Smith Rock",
    ),
    "sport": (
        "ultimate", "rugby", "squash", "soccer", "bouldering", "fencing", "basketball", "rowing", "badminton", "kendo",
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "hour": ("noon", "four", "five", "six", "half past six", "seven", "eight", "nine", "ten", "midnight"),
    "count": ("three", "four", "five", "six", "seven", "nine", "eleven", "twelve", "fourteen", "forty"),
    "mood": (
        "tired but happy", "cautiously optimistic", "not panicking", "proud of it", "ready for a nap",
        "weirdly calm", "still confused", "out of coffee", "in awe", "slightly feral",
    ),
}  # fmt: skip

TOPICS: tuple[Topic, ...] = (
    Topic(
        posts=(
            "{count} pages of {course} reading left and I am {mood}.",
            "Does anyone have notes for {course}? I was there but my brain was not.",
            "Study group for {course}, {day} at {hour}, {place}. Bring questions, I will bring {food}.",
            "The {course} problem set has a typo in question {count}. You are not losing your mind.",
            "Finally understood {course}. It only took {count} weeks and one good explanation in {place}.",
            "Professor just compared {course} to {food} and it honestly made sense.",
            "Reading {book} for {course}. Why did nobody tell me it was funny?",
        ),
        replies=(
            "I have notes, will send them tonight.", "Question two nearly ended me.", "Count me in!", "Same here.",
            "Office hours helped me a lot with this.", "Save me a seat?", "The second half is much better, promise.",
            "Wait, that was due this week?", "You explained it better than the book did.",
        ),
    ),
    Topic(
        posts=(
            "Thesis update: {count} pages written, {count} pages deleted, {mood}.",
            "My thesis desk in {place} now has a plant. Morale is up.",
            "If you see me in {place} after {hour}, please send me to bed.",
            "Advisor said “interesting”. {count} hours later I am still thinking about it.",
            "Chapter {count} is done! Celebrating with {food} in {place}.",
            "The printer in {place} works again. Print your drafts while it lasts.",
        ),
        replies=(
            "You have got this.", "Interesting is good! Probably.", "Proud of you!", "Send the draft, I will read it.",
            "Go to bed.", "One page at a time.", "The plant believes in you.", "See you on the parade.",
        ),
    ),
    Topic(
        posts=(
            "{weather} this morning. The canyon is all mist and {animal}.",
            "Just saw {animal} by {place}. We looked at each other for a long time.",
            "{weather} and the whole campus is on the front lawn.",
            "Walked the canyon loop before class. {animal}, and not one other person.",
            "{weather}. I biked to {place} anyway and I am {mood}.",
            "Sunrise from {place}. Worth the alarm.",
        ),
        replies=(
            "Oh, beautiful.", "I saw it too!", "What a place to live.", "Which side of the canyon?", "Jealous.",
            "I was asleep and regret nothing.", "That light!", "Portland being Portland.",
        ),
        pictured=0.6,
    ),
    Topic(
        posts=(
            "Made {food} for the whole floor of {dorm}. There is plenty left, come by.",
            "Commons has {food} today. This is not a drill.",
            "Whoever left {food} in the {dorm} kitchen with a note saying “please eat”: you are a hero.",
            "Potluck at {dorm} on {day} at {hour}. I am bringing {food}, we still need anything green.",
            "Trying to learn to make {food}. Attempt {count}. The smoke alarm sends its regards.",
            "Best {food} in Portland? Asking for everybody in {dorm}.",
        ),
        replies=(
            "On my way!", "Is there any left?", "Recipe please.", "I can bring a salad.", "Best thing I ate all week.",
            "The smoke alarm has heard worse.", "The cart on Woodstock, no contest.", "Is it vegan?",
        ),
        pictured=0.35,
    ),
    Topic(
        posts=(
            "{event} is on {day} at {hour}, {place}. Everyone is welcome, no experience needed.",
            "{band} at {place}, {day}, doors at {hour}. Free, bring earplugs.",
            "Still thinking about {event}. {band} was unreal.",
            "We need {count} more people to help set up {event}. You get {food}.",
            "On the radio {day} at {hour}: {count} songs about rain, then {band}, live.",
            "Who is going to {event}? I have a cape and no plan.",
            "Auditions for the spring play, {day} at {hour} in {place}. Come even if you have never done it.",
        ),
        replies=(
            "I will be there.", "Can I bring a friend?", "They were so good last time.", "I can help set up.",
            "Is it loud?", "A cape is a plan.", "Putting it in my calendar.", "Wish I could, I have lab.",
        ),
        pictured=0.2,
    ),
    Topic(
        posts=(
            "Lost: {thing}, probably in {place}. Reward: {food}.",
            "Found in {place}: {thing}. It is at the front desk now.",
            "Whoever took {thing} from {dorm}: I miss it, no questions asked.",
            "The Doyle Owl was seen near {place} at {hour}. I can say no more.",
            "Free to a good home: {thing} and a box of {book} paperbacks. Outside {dorm}.",
        ),
        replies=(
            "I think I saw it yesterday.", "Check the lost and found in Eliot.", "That is mine, thank you!",
            "I know nothing about any owl.", "Still available?", "Hope it turns up.", "The owl goes where it wants.",
        ),
    ),
    Topic(
        posts=(
            "Day trip to {trip} on {day}. {count} seats in the van, leaving at {hour}.",
            "Back from {trip}, {mood}. Go if you can.",
            "Took the bus to {trip} with {book} and nobody else. Perfect {day}.",
            "Anyone want to bike to {trip} on {day}? Slow pace, many snacks.",
            "{trip} with half of {dorm}. {count} blisters, no regrets.",
        ),
        replies=(
            "Take me next time!", "Is there a seat left?", "Those pictures!", "How was the road?", "I am in.",
            "My favorite place.", "Bring rain gear.", "I needed to hear this.",
        ),
        pictured=0.65,
    ),
    Topic(
        posts=(
            "Pick-up {sport} on {day} at {hour}. All levels, mostly beginners.",
            "We lost at {sport} by {count} and had the best time of anyone there.",
            "Tried {sport} for my PE credit and now I own equipment. Help.",
            "{sport} practice moved to {day}, {hour}, because of the weather.",
        ),
        replies=(
            "Good game!", "Can beginners come?", "My legs still hurt.", "See you there.", "Next time we win. Maybe.",
            "PE gets us all in the end.",
        ),
        pictured=0.25,
    ),
    Topic(
        posts=(
            "Finished {book} at {hour} in the morning. {mood}.",
            "Overheard in {place}: “it is not procrastination if it is {book}”.",
            "What should I read after {book}? Nothing assigned, please.",
            "Hot take: {book} is better the second time.",
            "Trading {book} for anything with fewer footnotes.",
        ),
        replies=(
            "One of my favorites.", "I never got past chapter two.", "Invisible Cities, always.", "Strong agree.",
            "Strongly disagree, let us have coffee about it.", "I will trade you!", "The ending, though.",
        ),
    ),
)  # fmt: skip

ASIDES = (
    "Anyone?", "More soon.", "Tell your friends.", "That is all.", "I love this place.", "Wish me luck.",
    "Details in {place}.", "Ask me about it in {place}.", "It has been a long {day}.", "Spread the word in {dorm}.",
    "Feeling {mood}.",
)  # fmt: skip
SHARE_NOTES = (
    "This.", "Come to this!", "Everyone should see this.", "Worth your time.", "Sharing for {dorm}.", "So true.",
    "Does anyone know more?", "Who is in for {day}?", "Made my {day}.", "Passing it on.",
)  # fmt: skip
ASIDE_SHARE = 0.35


def usernames(count: int, rng: Random) -> list[str]:
    """`count` different names such as `ada.lovelace`."""
    pairs = rng.sample(range(len(FIRST_NAMES) * len(LAST_NAMES)), count)
    return [f"{FIRST_NAMES[pair // len(LAST_NAMES)]}.{LAST_NAMES[pair % len(LAST_NAMES)]}" for pair in pairs]


def post(rng: Random) -> tuple[Topic, str, str]:
    """What somebody posts: the topic, the text, and a picture's address or ""."""
    topic = rng.choice(TOPICS)
    text = filled(rng.choice(topic.posts), rng)
    if rng.random() < ASIDE_SHARE:
        text += " " + filled(rng.choice(ASIDES), rng)
    pictured = rng.random() < topic.pictured
    return topic, text, f"https://picsum.photos/seed/{rng.randrange(10_000)}/800/600" if pictured else ""


def reply(topic: Topic, rng: Random) -> str:
    """What somebody answers to a post on this topic."""
    return rng.choice(topic.replies)


def share_note(rng: Random) -> str:
    """What somebody writes on top of a post that they share."""
    return filled(rng.choice(SHARE_NOTES), rng)


def filled(template: str, rng: Random) -> str:
    """The template with a choice for each `{slot}`, every sentence with a capital letter."""
    text = re.sub(r"\{(\w+)\}", lambda slot: rng.choice(SLOTS[slot[1]]), template)
    return re.sub(r"(^|[.!?] )([a-z])", lambda start: start[1] + start[2].upper(), text)

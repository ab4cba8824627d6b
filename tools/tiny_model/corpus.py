"""The pretraining corpus of `tunesmith-tiny`: general English, lists and formats, made from a seed.

`document(seed, index)` is a pure function, so any part of the corpus can be made again, in any order, by any number of
processes. Half of the documents are chats. The corpus stays away from the quickstart's task (support-desk messages):
its keys `intent`, `product`, `urgency` and `order_number` never occur as JSON keys here, so what the quickstart
measures is fine-tuning and not recall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import extraction
import lexicon as lx

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Document:
    """Either plain text or a chat; `kind` names the maker."""

    kind: str
    text: str | None = None
    chat: Chat | None = None


def ask(prompt: str, answer: str) -> Chat:
    """A chat of one question and one answer."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


# ---- copying and recalling -------------------------------------------------------------------------------------------


def entity(rng: Random) -> str:
    """Any invented thing that can only be copied."""
    return rng.choice((lx.title, lx.title, lx.code, lx.code, lx.name, lx.person, lx.date, lx.pseudo_word))(rng)


def copy_span(rng: Random) -> Chat:
    """Repeat what stands in the prompt."""
    style = rng.randrange(6)
    if style == 0:
        span = " ".join(lx.pseudo_word(rng) for _ in range(rng.randint(2, 8)))
        return ask(f"{rng.choice(('Repeat', 'Say', 'Copy', 'Write'))}: {span}", span)
    if style == 1:
        return ask(f"Copy the number: {(number := lx.digits(rng))}", number)
    if style == 2:
        thing = entity(rng)
        return ask(
            f"{sentence(rng)} {rng.choice(('It says', 'I saw', 'They call it', 'We found'))} {thing}. "
            f"{sentence(rng)}\nWhat was the name or code?",
            thing,
        )
    if style == 3:
        thing = entity(rng)
        return ask(f"Put it in quotes: {thing}", f'"{thing}"')
    if style == 4:
        thing, times = entity(rng), rng.randint(2, 4)
        return ask(f"Write {thing} {times} times.", ", ".join([thing] * times))
    return ask(f"Repeat the sentence. {(said := sentence(rng))}", said)


def recall(rng: Random) -> Chat:
    """Look up keys in a list of pairs."""
    keys = lx.lower_items(rng, 3, 7)
    make = rng.choice((lx.code, lx.title, lx.name, lambda r: lx.digits(r, 2, 6)))
    pairs = {key: make(rng) for key in keys}
    join, mark = rng.choice(("\n", ", ", "; ")), rng.choice((": ", " = ", " is "))
    listed = join.join(key + mark + value for key, value in pairs.items())
    asked = rng.sample(keys, min(len(keys), rng.randint(1, 3)))
    chat = ask(f"{listed}\n{asked[0]}?", pairs[asked[0]])
    for key in asked[1:]:
        chat += ask(f"{key}?", pairs[key])
    return chat


def repeated_text(rng: Random) -> str:
    """Plain text in which earlier spans come again."""
    things = [entity(rng) for _ in range(rng.randint(3, 7))]
    join = rng.choice(("\n", ", ", " ", " - "))
    again = things[:]
    if rng.random() < 0.4:
        rng.shuffle(again)
    return join.join(things + again)


def two_parts(rng: Random) -> Chat:
    """Name two spans of a free sentence in a small record, in JSON or as lines."""
    first, second = rng.choice((lx.title, lx.name))(rng), rng.choice((lx.code, lambda r: lx.digits(r, 3, 7)))(rng)
    frames = (
        "{a} came with {b}.",
        "About {a}, see {b}.",
        "Number {b} belongs to {a}.",
        "I have the {a} here, {b}.",
        "Where is my {a}? I wrote {b} on it.",
        "{b} - {a} again.",
        "The {a} with {b} is on the table.",
        "We took the {a} home ({b}).",
        "My {a} stands next to {b} in the hall.",
        "Is {b} the right one for the {a}?",
    )
    text = f"{rng.choice(extraction.GREETINGS)} {rng.choice(frames).format(a=first, b=second)} {sentence(rng)}".strip()
    if rng.random() < 0.25:
        text = text.replace(second, "it")
        second = None
    if rng.random() < 0.5:
        return ask(f"name and code as JSON\n{text}", extraction.dumps({"name": first, "code": second}))
    return ask(f"name and code as lines\n{text}", f"name: {first}\ncode: {second or 'none'}")


# ---- formats ---------------------------------------------------------------------------------------------------------


def record(rng: Random) -> dict[str, str]:
    """A flat record with real or invented keys."""
    keys = (
        "name",
        "city",
        "age",
        "color",
        "size",
        "code",
        "day",
        "animal",
        "food",
        "year",
        "owner",
        "room",
        "note",
        "shape",
    )
    chosen = rng.sample(keys, rng.randint(2, 5)) if rng.random() < 0.6 else lx.lower_items(rng, 2, 5)
    makers = (lx.name, lx.title, lx.code, lx.person, lx.date, lambda r: lx.digits(r, 1, 5), lx.pseudo_word)
    return {key: rng.choice(makers)(rng) for key in chosen}


FORMATS: dict[str, Callable[[dict[str, str]], str]] = {
    "JSON": lambda row: extraction.dumps(row),
    "lines": lambda row: "\n".join(f"{key}: {value}" for key, value in row.items()),
    "CSV": lambda row: ",".join(row) + "\n" + ",".join(row.values()),
    "a sentence": lambda row: "The " + ", the ".join(f"{key} is {value}" for key, value in row.items()) + ".",
}


def convert(rng: Random) -> Chat:
    """The same record in another format."""
    row = record(rng)
    source, target = rng.sample(sorted(FORMATS), 2)
    verb = rng.choice(("Convert to", "Turn into", "Write as", "To"))
    return ask(f"{verb} {target}:\n{FORMATS[source](row)}", FORMATS[target](row))


def pick_field(rng: Random) -> Chat:
    """One value, or fewer keys, of a record."""
    row = record(rng)
    source = rng.choice(sorted(FORMATS))
    if rng.random() < 0.5:
        key = rng.choice(sorted(row))
        return ask(f"{FORMATS[source](row)}\nWhat is the {key}?", row[key])
    keys = rng.sample(sorted(row), rng.randint(1, len(row)))
    return ask(
        f"Keep only {', '.join(keys)} as JSON.\n{FORMATS[source](row)}", extraction.dumps({k: row[k] for k in keys})
    )


def table(rng: Random) -> str:
    """Plain text: a few records in one format."""
    rows = [record(rng) for _ in range(2)]
    return "\n".join(FORMATS[rng.choice(("JSON", "lines", "CSV"))](row) for row in rows)


# ---- language --------------------------------------------------------------------------------------------------------


def sentence(rng: Random) -> str:
    """A grammatical sentence about nothing in particular."""
    noun, other, adjective = rng.choice(lx.NOUNS), rng.choice(lx.NOUNS), rng.choice(lx.ADJECTIVES)
    verb, adverb, who = rng.choice(lx.VERBS), rng.choice(lx.ADVERBS), lx.person(rng)
    frames = (
        f"{who} {verb} the {adjective} {noun}.",
        f"The {adjective} {noun} was near the {other}.",
        f"{adverb.capitalize()}, {who} {verb} a {noun}.",
        f"There is a {noun} behind the {other}.",
        f"I think the {noun} is {adjective}.",
        f"We {verb} the {noun} {adverb}.",
        f"Why is the {noun} so {adjective}?",
        f"{who} and {lx.person(rng)} {verb} the {noun} in {lx.name(rng)}.",
        f"My {noun} is not {adjective}, it is {rng.choice(lx.ADJECTIVES)}.",
        f"On {rng.choice(lx.DAYS)} they {verb} {rng.randint(2, 20)} {noun}s.",
        f"Please bring the {noun} and the {other}.",
        f"The {lx.title(rng)} is {adjective}.",
        f"{' '.join(rng.sample(lx.COMMON, rng.randint(3, 8)))}.",
        f"I {rng.choice(lx.COMMON)} that you {rng.choice(lx.COMMON)} the {rng.choice(lx.COMMON)} {noun}.",
        f"Could you {rng.choice(lx.COMMON)} my {lx.title(rng)} {rng.choice(lx.COMMON)} {adverb}?",
        f"She said that the {noun} {adverb} {verb} him.",
    )
    return rng.choice(frames)


def story(rng: Random) -> tuple[str, dict[str, str]]:
    """A short story with fixed facts, and questions with their answers."""
    hero, friend, town = lx.person(rng), lx.person(rng), lx.name(rng)
    noun, adjective, place = rng.choice(lx.NOUNS), rng.choice(lx.ADJECTIVES), rng.choice(lx.NOUNS)
    animal, day, feeling = rng.choice(lx.ANIMALS), rng.choice(lx.DAYS), rng.choice(lx.GOOD + lx.BAD)
    openings = (
        f"Once upon a time {hero} lived in {town}.",
        f"{hero} came from {town}.",
        f"In {town} there was a child called {hero}.",
    )
    middles = [
        f"On {day} {hero} lost a {adjective} {noun}.",
        f"{hero} had a {animal} and loved it.",
        f"{friend} was a good friend and helped.",
        f"They looked behind the {place}.",
        sentence(rng),
    ]
    rng.shuffle(middles)
    ending = rng.choice((f"In the end {friend} found the {noun}.", f"At last the {noun} was back, thanks to {friend}."))
    text = " ".join(
        [
            rng.choice(openings),
            *middles[: rng.randint(3, 5)],
            f"On {day} the {noun} was gone.",
            ending,
            f"{hero} felt {feeling}.",
        ]
    )
    facts = {
        f"Where did {hero} live?": town,
        f"Who found the {noun}?": friend,
        f"How did {hero} feel?": feeling,
        "What was gone?": f"the {noun}",
        "On which day?": day,
    }
    return text, facts


def story_text(rng: Random) -> str:
    """A story alone."""
    return story(rng)[0]


def story_chat(rng: Random) -> Chat:
    """A story told on request, or a story with questions."""
    text, facts = story(rng)
    if rng.random() < 0.25:
        return ask(rng.choice(("Tell me a story.", "A short story, please.", "Tell a tale.")), text)
    asked = rng.sample(sorted(facts), rng.randint(1, 3))
    chat = ask(f"{text}\n{asked[0]}", facts[asked[0]])
    for one in asked[1:]:
        chat += ask(one, facts[one])
    return chat


def prose(rng: Random) -> str:
    """Loose sentences."""
    return " ".join(sentence(rng) for _ in range(rng.randint(2, 5)))


SMALL_TALK = {
    "Hello!": "Hello! How can I help you?",
    "Hi": "Hi! What can I do for you?",
    "Good morning.": "Good morning! How are you?",
    "Who are you?": "I am a very small language model.",
    "What can you do?": "I can copy, sort, count and read short texts.",
    "How are you?": "I am fine, thank you.",
    "Thank you!": "You are welcome.",
    "Bye!": "Goodbye!",
    "What is JSON?": "A text format for data with keys and values.",
    "What is a city?": "A place where many people live.",
    "What do cows eat?": "Cows eat grass.",
    "How many days has a week?": "Seven.",
    "What color is the sky?": "Blue.",
    "Which day comes after Monday?": "Tuesday.",
    "Is ice cold?": "Yes.",
    "Is fire cold?": "No.",
    "Where do fish live?": "In water.",
    "What is a library?": "A house full of books.",
}


def small_talk(rng: Random) -> Chat:
    """Greetings and plain facts."""
    chat = []
    for question in rng.sample(sorted(SMALL_TALK), rng.randint(1, 3)):
        chat += ask(question, SMALL_TALK[question])
    return chat


# ---- judging ---------------------------------------------------------------------------------------------------------


def sentiment(rng: Random) -> Chat:
    """Positive or negative, under label names that the prompt gives."""
    words, index = rng.choice(((lx.GOOD, 0), (lx.BAD, 1)))
    labels = rng.choice(
        (("positive", "negative"), ("good", "bad"), ("happy", "unhappy"), ("yes", "no"), ("plus", "minus"))
    )
    said = f"The {rng.choice(lx.NOUNS)} was {rng.choice(words)} and {rng.choice(words)}."
    text = " ".join(rng.sample([said, sentence(rng)], 2)) if rng.random() < 0.5 else said
    shown = "/".join(sorted(labels)) if rng.random() < 0.7 else " or ".join(labels)
    if rng.random() < 0.3:
        return ask(f"{shown}? {text}", extraction.dumps({"label": labels[index]}))
    return ask(f"Is it {shown}? {text}", labels[index])


def topic(rng: Random) -> Chat:
    """The topic of a text; the prompt lists the labels."""
    names = rng.sample(sorted(lx.TOPIC_WORDS), rng.randint(2, 5))
    right = rng.choice(names)
    words = rng.sample(lx.TOPIC_WORDS[right], 3)
    text = rng.choice(
        (
            f"They spoke of the {words[0]}, the {words[1]} and the {words[2]}.",
            ", ".join(words),
            f"First came the {words[0]}. Then I saw a {words[1]}.",
            f"Is the {words[0]} next to the {words[2]}?",
        )
    )
    return ask(f"Topic ({', '.join(names)}): {text}", right)


def examples_given(rng: Random) -> Chat:
    """Invented labels taught by examples in the prompt."""
    groups = rng.sample(sorted(lx.TOPIC_WORDS), 2)
    labels = [lx.pseudo_word(rng) for _ in groups]
    shots = [
        (rng.choice(lx.TOPIC_WORDS[group]), label)
        for group, label in zip(groups, labels, strict=True)
        for _ in range(3)
    ]
    rng.shuffle(shots)
    pick = rng.randrange(2)
    lines = "\n".join(f"{word} -> {label}" for word, label in shots)
    return ask(f"{lines}\n{rng.choice(lx.TOPIC_WORDS[groups[pick]])} ->", labels[pick])


# ---- lists and numbers -----------------------------------------------------------------------------------------------


def lists(rng: Random) -> Chat:
    """Sort, reverse, count, pick from a list of words."""
    items = lx.lower_items(rng, 2, 6)
    shown, style = ", ".join(items), rng.randrange(7)
    if style == 0:
        return ask(f"Sort by the alphabet: {shown}", ", ".join(sorted(items)))
    if style == 1:
        return ask(f"Reverse the list: {shown}", ", ".join(reversed(items)))
    if style == 2:
        return ask(f"How many words? {shown}", str(len(items)))
    if style == 3:
        return ask(f"First word: {shown}", items[0])
    if style == 4:
        return ask(f"Last word: {shown}", items[-1])
    if style == 5:
        at = rng.randrange(len(items) - 1)
        return ask(f"What comes after {items[at]}? {shown}", items[at + 1])
    return ask(f"Write as a JSON list: {shown}", extraction.dumps(items))


def numbers(rng: Random) -> Chat:
    """Small sums, comparisons, sorting, counting on."""
    a, b, style = rng.randint(0, 50), rng.randint(0, 50), rng.randrange(6)
    if style == 0:
        return ask(rng.choice((f"{a} + {b} =", f"What is {a} plus {b}?")), str(a + b))
    if style == 1:
        return ask(rng.choice((f"{max(a, b)} - {min(a, b)} =", f"Take {min(a, b)} from {max(a, b)}.")), str(abs(a - b)))
    if style == 2:
        return ask(f"{a % 10} * {b % 10} =", str((a % 10) * (b % 10)))
    if style == 3:
        return ask(f"Which is larger, {a} or {b}?", str(max(a, b)))
    if style == 4:
        some = [rng.randint(0, 99) for _ in range(rng.randint(2, 5))]
        return ask(f"Sort: {' '.join(map(str, some))}", " ".join(map(str, sorted(some))))
    return ask(f"Count on: {a}, {a + 1}, {a + 2}", ", ".join(str(a + step) for step in range(3, 7)))


def letter_case(rng: Random) -> Chat:
    """Upper, lower, capitalise, initials."""
    words = [lx.pseudo_word(rng) for _ in range(rng.randint(1, 3))]
    text, style = " ".join(words), rng.randrange(4)
    if style == 0:
        return ask(f"Upper case: {text}", text.upper())
    if style == 1:
        return ask(f"Lower case: {text.title()}", text)
    if style == 2:
        return ask(f"As a title: {text}", text.title())
    return ask(f"Initials: {text.title()}", "".join(word[0].upper() for word in words))


CHATS: dict[Callable[[Random], Chat], float] = {
    extraction.implicit: 20,
    extraction.explicit: 14,
    extraction.question: 6,
    two_parts: 9,
    copy_span: 7,
    recall: 6,
    convert: 6,
    pick_field: 4,
    story_chat: 5,
    small_talk: 1,
    sentiment: 2.5,
    topic: 2.5,
    examples_given: 1.5,
    lists: 3,
    numbers: 2,
    letter_case: 1.5,
}
TEXTS: dict[Callable[[Random], str], float] = {repeated_text: 5, table: 3, story_text: 5, prose: 5}
MAKERS = [(maker, weight, "chat") for maker, weight in CHATS.items()] + [
    (maker, weight, "text") for maker, weight in TEXTS.items()
]
WEIGHTS = [weight for _, weight, _ in MAKERS]


def document(seed: int, index: int) -> Document:
    """Document number `index` of the corpus named by `seed`; the same for ever for the same two numbers."""
    rng = Random(f"{seed}/{index}")
    maker, _, form = rng.choices(MAKERS, WEIGHTS)[0]
    if form == "text":
        return Document(maker.__name__, text=maker(rng))
    chat = maker(rng)
    # A minority of chats is plain text with names of the speakers, as it stands in books and logs.
    if rng.random() < 0.06:
        return Document(maker.__name__, text="\n".join(f"{turn['role']}: {turn['content']}" for turn in chat))
    return Document(maker.__name__, chat=chat)

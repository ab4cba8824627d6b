"""Messages with named facts in them, and the record that holds those facts.

A domain has copied fields (a span of the message) and judged fields (a label that follows from the wording). The same
message is asked for in many ways: with the keys in the instruction, with invented keys that the instruction explains, or
with no instruction at all, where the domain alone decides the record's shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import lexicon as lx


@dataclass(frozen=True)
class Copied:
    """A field whose value is a span of the message. `phrases` hold one `{}` each."""

    keys: tuple[str, ...]
    make: Callable[[Random], str]
    phrases: tuple[str, ...]
    optional: float = 0.0


@dataclass(frozen=True)
class Judged:
    """A field whose value is a label; `labels` gives the wordings that mean it ("" adds no words)."""

    keys: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Domain:
    """What one kind of message can say."""

    name: str
    copied: tuple[Copied, ...]
    judged: tuple[Judged, ...] = ()


def _number(low: int, high: int) -> Callable[[Random], str]:
    return lambda rng: str(rng.randint(low, high))


DOMAINS = (
    Domain(
        "library note",
        (
            Copied(
                ("title", "book", "book_title"),
                lx.title,
                (
                    "It is about the book {}.",
                    "The title is {}.",
                    "I mean the novel {}.",
                    "{} is the one I have here.",
                    "I found {} on the shelf.",
                    "My copy of {} is at home.",
                    "We talked about {} at the desk.",
                ),
            ),
            Copied(
                ("card", "member", "card_id"),
                lx.code,
                (
                    "My card is {}.",
                    "Card number {}.",
                    "The member number is {}.",
                    "You know me as member {}.",
                    "(card {})",
                    "Card: {}",
                ),
                0.3,
            ),
        ),
        (
            Judged(
                ("action", "wish"),
                {
                    "renew": (
                        "Can I keep it for two more weeks?",
                        "Please extend the loan.",
                        "I have not finished reading it yet.",
                        "I would like to renew it.",
                        "May I hold on to it a bit longer?",
                    ),
                    "return": (
                        "I want to bring it back.",
                        "Where can I drop it off?",
                        "I have finished reading it.",
                        "I will hand it in tomorrow.",
                        "It can go back on the shelf.",
                    ),
                    "reserve": (
                        "Please put it aside for me.",
                        "Let me know when it is free.",
                        "Put me on the waiting list.",
                        "Could you hold it until I come by?",
                        "I want to be the next reader.",
                    ),
                    "lost": (
                        "I cannot find it anywhere.",
                        "I think I left it on the train.",
                        "It has disappeared.",
                        "Someone took it from my bag.",
                        "I have looked in every room and it is gone.",
                    ),
                    "donate": (
                        "I would like to give it to you.",
                        "You can have it for free.",
                        "Please take it as a gift.",
                    ),
                },
            ),
            Judged(
                ("mood", "tone"),
                {
                    "calm": ("", "", "No hurry.", "Take your time.", "Whenever it suits you."),
                    "pressed": (
                        "I am in a hurry.",
                        "Please answer today.",
                        "It must happen right now.",
                        "I need to know at once!",
                    ),
                    "normal": ("This week would be good.", "In the next days, please.", "By Friday if possible."),
                },
            ),
        ),
    ),
    Domain(
        "travel note",
        (
            Copied(
                ("to", "destination", "goal"),
                lx.name,
                (
                    "I am going to {}.",
                    "The trip ends in {}.",
                    "We want to reach {}.",
                    "Our destination is {}.",
                    "Take me to {}.",
                    "We fly to {}.",
                    "A ride towards {}, please.",
                ),
            ),
            Copied(
                ("from", "origin", "start"),
                lx.name,
                (
                    "I start in {}.",
                    "We leave from {}.",
                    "I live in {}.",
                    "The first stop is {}.",
                    "Coming from {}.",
                ),
                0.3,
            ),
            Copied(
                ("booking", "flight", "trip_code"),
                lx.code,
                (
                    "The booking is {}.",
                    "Flight {}.",
                    "My trip code is {}.",
                    "Booked under {}.",
                    "See {}.",
                    "ref {}",
                ),
                0.3,
            ),
        ),
        (
            Judged(
                ("step", "plan"),
                {
                    "book": ("I need a seat.", "Please book it.", "Get me on board.", "I want to buy a seat."),
                    "change": (
                        "Another date would be better.",
                        "Please move it to next week.",
                        "Can I swap the day?",
                        "I need to travel later than planned.",
                    ),
                    "stop": (
                        "I am not going any more.",
                        "Please call it off.",
                        "I have to stay at home.",
                        "Drop the whole trip.",
                    ),
                    "ask": (
                        "How long does it take?",
                        "Is there food on the way?",
                        "Which gate is it?",
                        "Can I bring my dog?",
                    ),
                },
            ),
            Judged(
                ("class", "seat"),
                {
                    "first": ("I want the best seat.", "Only the finest cabin.", "With a bed and champagne."),
                    "second": ("Cheap is fine.", "The lowest fare, please.", "A plain seat will do."),
                    "any": ("", "Any seat is fine."),
                },
            ),
        ),
    ),
    Domain(
        "weather report",
        (
            Copied(
                ("city", "place", "town"),
                lx.name,
                (
                    "This is the report for {}.",
                    "We look at {} today.",
                    "In {} people stay at home.",
                    "{} wakes up.",
                    "Here is the news from {}.",
                ),
            ),
            Copied(
                ("temperature", "degrees", "temp"),
                _number(-9, 39),
                (
                    "It is {} degrees.",
                    "The temperature reaches {}.",
                    "We measured {} degrees at noon.",
                    "Around {} C.",
                ),
                0.2,
            ),
            Copied(
                ("wind", "wind_speed"),
                _number(1, 99),
                (
                    "Wind blows at {} km/h.",
                    "Gusts of {}.",
                    "The wind has a speed of {}.",
                    "A breeze of {} km/h.",
                ),
                0.2,
            ),
            Copied(
                ("station", "station_id"), lx.code, ("Station {}.", "Measured by {}.", "Sent from station {}."), 0.3
            ),
        ),
        (
            Judged(
                ("sky", "weather"),
                {
                    "rain": ("Take an umbrella.", "The streets are wet.", "Drops fall all day.", "Showers everywhere."),
                    "sun": ("Not a cloud in sight.", "Wear a hat and dark glasses.", "A bright and shining day."),
                    "snow": ("Everything is white.", "Children build snowmen.", "Flakes cover the roofs."),
                    "fog": ("You can hardly see the road.", "A grey veil hides the houses.", "Drive with lights on."),
                },
            ),
        ),
    ),
    Domain(
        "meeting note",
        (
            Copied(
                ("topic", "subject", "theme"),
                lx.title,
                (
                    "We talk about {}.",
                    "The topic is {}.",
                    "It is a meeting on {}.",
                    "{} is the only point.",
                    "Subject: {}.",
                ),
            ),
            Copied(
                ("room", "place", "where"),
                lx.code,
                ("We meet in room {}.", "Room {}.", "The place is {}.", "Come to {}."),
                0.3,
            ),
            Copied(
                ("time", "hour", "start"),
                lx.clock,
                ("It starts at {}.", "Be there at {}.", "From {} on.", "Time: {}."),
                0.2,
            ),
            Copied(
                ("host", "person", "who"), lx.person, ("{} leads it.", "{} invites you.", "Ask {}.", "Yours, {}."), 0.2
            ),
        ),
        (
            Judged(
                ("kind", "form"),
                {
                    "online": ("Use the video link.", "Join from your laptop.", "You can stay at home."),
                    "onsite": (
                        "Please come in person.",
                        "Bring your badge for the door.",
                        "There will be cake on the table.",
                    ),
                },
            ),
        ),
    ),
    Domain(
        "match report",
        (
            Copied(
                ("home", "team_a", "hosts"),
                lx.title,
                ("{} played at home.", "The hosts were {}.", "{} ran onto the field."),
            ),
            Copied(
                ("away", "team_b", "guests"),
                lx.title,
                ("{} came as guests.", "The visitors were {}.", "{} had travelled far."),
            ),
            Copied(
                ("score", "result"),
                lambda rng: f"{rng.randint(0, 9)}:{rng.randint(0, 9)}",
                (
                    "It ended {}.",
                    "The final score was {}.",
                    "{} after ninety minutes.",
                ),
                0.2,
            ),
            Copied(
                ("crowd", "spectators"), lambda rng: lx.digits(rng, 2, 6), ("{} people watched.", "A crowd of {}."), 0.3
            ),
        ),
        (
            Judged(
                ("quality", "verdict"),
                {
                    "good": tuple(f"It was a {word} match." for word in lx.GOOD[:16]),
                    "bad": tuple(f"It was a {word} match." for word in lx.BAD[:16]),
                },
            ),
        ),
    ),
    Domain(
        "sensor line",
        (
            Copied(
                ("sensor", "device", "unit"),
                lx.code,
                ("Sensor {} reports.", "This is {}.", "Line from {}.", "Device {}:"),
            ),
            Copied(
                ("value", "reading", "level"),
                lambda rng: lx.digits(rng, 1, 6),
                (
                    "The reading is {}.",
                    "value {}",
                    "It shows {}.",
                    "Level at {}.",
                ),
                0.15,
            ),
            Copied(
                ("site", "place", "area"), lx.title, ("It stands at {}.", "Placed in {}.", "Site {}.", "Near {}."), 0.3
            ),
        ),
        (
            Judged(
                ("state", "status"),
                {
                    "ok": ("All is fine.", "Everything works.", "No fault found.", "Running well."),
                    "warn": ("It is getting hot.", "The battery is low.", "The signal is weak."),
                    "down": ("It does not answer.", "There is no power.", "It stopped working.", "It is broken."),
                },
            ),
        ),
    ),
    Domain(
        "recipe card",
        (
            Copied(
                ("dish", "name", "meal"),
                lx.title,
                ("Today we cook {}.", "{} is easy to make.", "My favourite meal is {}."),
            ),
            Copied(
                ("minutes", "time"),
                _number(3, 180),
                ("It takes {} minutes.", "Ready after {} minutes.", "{} minutes in all."),
                0.2,
            ),
            Copied(
                ("serves", "people"),
                _number(1, 12),
                ("It serves {}.", "Enough for {} people.", "For {} hungry guests."),
                0.2,
            ),
            Copied(
                ("main", "base"),
                lambda rng: rng.choice(lx.FOODS),
                ("Take a lot of {}.", "You need {}.", "Start with {}."),
            ),
        ),
        (
            Judged(
                ("taste", "flavour"),
                {
                    "sweet": ("Add sugar and honey.", "It is a dessert.", "Children love this cake."),
                    "spicy": ("It burns on the tongue.", "Add hot pepper.", "Drink water with it."),
                    "plain": ("", "Only a little salt.", "Simple and light."),
                },
            ),
        ),
    ),
    Domain(
        "museum entry",
        (
            Copied(
                ("piece", "work", "object"),
                lx.title,
                (
                    "Look at {}.",
                    "The piece is called {}.",
                    "Visitors love {}.",
                    "A note on {}:",
                    "Please see {} first.",
                    "About the {} in our hall.",
                    "The {} is here since spring.",
                    "Have a look at my {}.",
                ),
            ),
            Copied(
                ("number", "inventory", "item"),
                lx.code,
                (
                    "Inventory {}.",
                    "It has the number {}.",
                    "Listed as {}.",
                    "Find it under {}.",
                    "(no. {})",
                ),
                0.3,
            ),
            Copied(("hall", "gallery"), lx.name, ("It hangs in hall {}.", "Gallery {}.", "Go to the {} gallery."), 0.3),
        ),
        (
            Judged(
                ("condition", "shape"),
                {
                    "fine": ("It looks like new.", "It is in good shape.", "There is nothing to repair."),
                    "damaged": (
                        "There is a crack in it.",
                        "One corner is broken.",
                        "The glass is in pieces.",
                        "It has a deep scratch.",
                    ),
                    "missing": ("It is not in its place.", "Nobody has seen it since Monday.", "The shelf is empty."),
                    "moved": (
                        "It is now in the other house.",
                        "They carried it to the cellar.",
                        "It travels to a new home.",
                    ),
                },
            ),
            Judged(
                ("when", "pace"),
                {
                    "now": ("Act immediately!", "This cannot wait.", "As fast as you can.", "Today, please."),
                    "soon": ("In a few days.", "This week is fine.", "Soon would be nice."),
                    "later": ("", "There is no rush.", "Some day will do.", "It can wait."),
                },
            ),
        ),
    ),
    Domain(
        "pet card",
        (
            Copied(
                ("pet", "animal_name", "called"),
                lx.name,
                ("My pet is called {}.", "{} is here.", "Say hello to {}.", "I brought {}."),
            ),
            Copied(
                ("chip", "tag"),
                lambda rng: lx.digits(rng, 4, 10),
                ("The chip is {}.", "Tag {}.", "Chip number {}."),
                0.3,
            ),
            Copied(("owner", "human"), lx.person, ("I am {}.", "{} is the owner.", "It lives with {}."), 0.3),
            Copied(
                ("species", "animal"),
                lambda rng: rng.choice(lx.ANIMALS),
                ("It is a {}.", "A young {}.", "What a lovely {}!"),
            ),
        ),
        (
            Judged(
                ("need", "visit"),
                {
                    "food": ("It wants to eat.", "The bowl is empty.", "It is hungry."),
                    "check": ("Please look at its teeth.", "The left leg hurts.", "It coughs all night."),
                    "walk": ("It wants to run outside.", "We go to the park.", "It needs fresh air."),
                },
            ),
        ),
    ),
)

GREETINGS = ("Hello,", "Hi!", "Good morning,", "Dear all,", "Hey,", "Good evening.", "Hi there,", "", "", "", "")
CLOSINGS = ("Thanks.", "Thank you!", "Bye.", "See you.", "Kind regards", "Best wishes", "", "", "", "", "", "")
FILLERS = (
    "The sun was out.",
    "I had tea before.",
    "My sister says hello.",
    "I like the colour.",
    "It was a long day.",
    "We talked for a while.",
    "Nobody was late.",
    "I hope you are well.",
    "It is my first time here.",
    "",
    "",
    "",
)


def dumps(record: object, rng: Random | None = None) -> str:
    """JSON text; compact unless the generator asks for the spaced notation."""
    spaced = rng is not None and rng.random() < 0.15
    return json.dumps(record, ensure_ascii=False, separators=(", ", ": ") if spaced else (",", ":"))


def message(rng: Random, domain: Domain) -> tuple[str, dict[int, str | None], dict[int, str]]:
    """One message with the values of its copied fields and the labels of its judged fields, by field index."""
    sentences, copied, judged = [], {}, {}
    for index, field in enumerate(domain.copied):
        if rng.random() < field.optional:
            copied[index] = None
            continue
        copied[index] = field.make(rng)
        sentences.append(rng.choice(field.phrases).format(copied[index]))
    for index, field in enumerate(domain.judged):
        judged[index] = rng.choice(tuple(field.labels))
        sentences.append(rng.choice(field.labels[judged[index]]))
    if rng.random() < 0.5:
        sentences.append(rng.choice(FILLERS))
    rng.shuffle(sentences)
    parts = [rng.choice(GREETINGS), *sentences, rng.choice(CLOSINGS)]
    text = " ".join(part for part in parts if part)
    return text, copied, judged


def implicit(rng: Random) -> list[dict[str, str]]:
    """A message alone; the answer is the record with the domain's first keys, in their order."""
    domain = rng.choice(DOMAINS)
    text, copied, judged = message(rng, domain)
    record: dict[str, str | None] = {field.keys[0]: judged[i] for i, field in enumerate(domain.judged)}
    record.update({field.keys[0]: copied[i] for i, field in enumerate(domain.copied)})
    return [{"role": "user", "content": text}, {"role": "assistant", "content": dumps(record)}]


ASKS = (
    "Extract {keys} as JSON.",
    "Return JSON with the keys {keys}.",
    "Give me {keys} as a JSON object.",
    "Write a JSON record with {keys}.",
    "JSON: {keys}",
    "Fill in {keys}. Answer with JSON only.",
)


def explicit(rng: Random) -> list[dict[str, str]]:
    """A message and an instruction that names the keys wanted, in a random order and sometimes with invented names."""
    domain = rng.choice(DOMAINS)
    text, copied, judged = message(rng, domain)
    fields = [(field.keys, copied[i], None) for i, field in enumerate(domain.copied)]
    fields += [(field.keys, judged[i], tuple(field.labels)) for i, field in enumerate(domain.judged)]
    rng.shuffle(fields)
    fields = fields[: rng.randint(1, len(fields))]
    renamed, record, wanted = rng.random() < 0.25, {}, []
    for keys, value, labels in fields:
        key = rng.choice(keys)
        shown = lx.pseudo_word(rng) if renamed else key
        record[shown] = value
        note = f" ({key})" if renamed else ""
        options = f" ({'/'.join(labels)})" if labels and not renamed and rng.random() < 0.7 else ""
        wanted.append(shown + note + options)
    ask = rng.choice(ASKS).format(keys=", ".join(wanted))
    answer = {"role": "assistant", "content": dumps(record, rng)}
    style = rng.random()
    if style < 0.3:
        return [{"role": "system", "content": ask}, {"role": "user", "content": text}, answer]
    prompt = f"{ask}\n{text}" if style < 0.65 else f"{text}\n{ask}"
    return [{"role": "user", "content": prompt}, answer]


def question(rng: Random) -> list[dict[str, str]]:
    """A message and questions about single facts of it."""
    domain = rng.choice(DOMAINS)
    text, copied, judged = message(rng, domain)
    values = {field.keys[0]: copied[i] or "not given" for i, field in enumerate(domain.copied)}
    values.update({field.keys[0]: judged[i] for i, field in enumerate(domain.judged)})
    asked = rng.sample(sorted(values), min(len(values), rng.randint(1, 2)))
    chat = [
        {"role": "user", "content": f"{text}\nWhat is the {asked[0]}?"},
        {"role": "assistant", "content": values[asked[0]]},
    ]
    for key in asked[1:]:
        chat += [{"role": "user", "content": f"And the {key}?"}, {"role": "assistant", "content": values[key]}]
    return chat

# ruff: noqa: SIM905 (word lists are read and edited as running text)
# fmt: off
"""What customers of the quickstart's support desk write in `test.jsonl` and most often in training; a quarter of the templates is
held out for `test_unseen.jsonl`. `{p}` is the product, `{o}` the order number. What validation and the free part ask with is in
wordings_validation.py and wordings_free.py."""

from __future__ import annotations

import re
from functools import cache
from itertools import product
from random import Random

import wordings_free
import wordings_validation

CORES = {
    "refund": (
        "I want my money back for the {p}.", "Please refund the {p}.", "The {p} is not what I expected, refund me please.",
        "Can I get a refund for the {p}?", "I returned the {p} and still wait for my money.",
        "I would like the money for the {p} back.", "I sent the {p} back, where is my refund?", "Money back for the {p} please.",
        "You owe me a refund for the {p}.", "I am not happy with the {p} and want a refund.",
        "I was charged twice for the {p}, please refund one payment.", "How do I get my money back for my {p}?",
        "Refund for {p} please.", "The {p} was too small, so we ask for our money back.",
        "I have not received the refund for the {p} yet.", "When will I see the money for my {p} again?",
        "My refund of the {p} is too low.", "Give me the money that I paid for the {p}.",
    ),
    "exchange": (
        "I want to exchange the {p} for another size.", "Can I swap the {p} for a blue one?", "Please exchange my {p}.",
        "I got the wrong colour of the {p}, can we swap it?", "The {p} is too small, I want to exchange it.",
        "Could I have a different model instead of the {p}?", "I would like to swap my {p}.",
        "You sent the wrong size of the {p}, please exchange it.", "Is it possible to exchange the {p} for a larger one?",
        "Please send me another colour instead of this {p}.", "Exchange for {p} please.",
        "We want to swap the {p} for the green one.", "Another size instead of the {p}, please.",
        "May I swap the {p} with a smaller one?", "My {p} has the wrong colour, I need a red one instead.",
        "How can I exchange a {p}?", "Please swap our {p}, it does not fit.", "I need a bigger one instead of my {p}.",
    ),
    "delivery": (
        "Where is my {p}?", "My {p} has not arrived yet.", "When will the {p} arrive?",
        "I am still waiting for the delivery of the {p}.", "The parcel with the {p} is late.",
        "The {p} should have arrived last week.", "Can you track the package with my {p}?",
        "The tracking of my {p} does not move.", "Where is the package with the {p}?", "The {p} never arrived.",
        "The package with the {p} did not come.", "What is the delivery date of the {p}?",
        "My package with the {p} seems to be lost.", "The delivery of the {p} is late.", "When does my {p} arrive here?",
        "Delivery of {p} please check.", "We have waited three weeks for our {p} to arrive.",
        "Please track the parcel with the {p}.",
    ),
    "repair": (
        "My {p} is broken.", "The {p} stopped working.", "The {p} does not work any more.", "Can you repair my {p}?",
        "A part of the {p} is broken.", "The {p} makes a noise and needs a repair.", "The battery of the {p} is broken.",
        "The {p} fell down, can you fix it?", "Please fix my {p}.", "The button of the {p} does not work.",
        "The {p} is damaged, please fix it.", "I need a repair for my {p}.", "The screen of the {p} is broken.",
        "Who can repair the {p}?", "My new {p} does not work.", "Repair for {p} please.", "Can somebody fix the {p}?",
        "The {p} arrived broken.",
    ),
    "cancel": (
        "Please cancel my order of the {p}.", "I want to cancel the {p}.", "I do not need the {p} any more, please cancel it.",
        "Can I still cancel the {p}?", "Please cancel the {p} at no cost.", "I ordered the {p} by mistake, cancel it please.",
        "Cancel the {p}, I changed my mind.", "I would like to cancel the {p} that I ordered.", "Cancel {p} please.",
        "We bought the {p} elsewhere, so cancel our order.", "How can I cancel my {p}?", "I must cancel the order of the {p}.",
        "I ordered the {p} twice, cancel one of them.", "My plans changed, please cancel the {p}.",
        "Please cancel the {p} before it is sent.", "Did you cancel my {p}?", "We wish to cancel the {p}.",
        "I need to cancel a {p}.",
    ),
    "invoice": (
        "I need an invoice for the {p}.", "Please send me the bill for the {p}.", "The receipt of the {p} is missing.",
        "Can I get a copy of the invoice for my {p}?", "The invoice for the {p} shows the wrong name.",
        "I lost the receipt for the {p}.", "Where can I find the bill of the {p}?", "My company needs an invoice for the {p}.",
        "Invoice for {p} please.", "The tax on the bill of the {p} is wrong.", "Please mail the receipt for the {p}.",
        "I never got a bill for the {p}.", "Could you put our company name on the invoice of the {p}?",
        "There was no receipt in the box of the {p}.", "I need the paper invoice of the {p} for my taxes.",
        "The {p} came without a bill.", "Please correct the invoice of the {p}.", "How do I get a receipt for my {p}?",
    ),
}

URGENCY = {
    "high": (
        "It is urgent.", "This is very urgent!", "I need an answer today.", "Urgent!", "I need this solved immediately.",
        "Answer as soon as possible.", "Please help today.", "As soon as possible please.", "Do it immediately please.",
        "It is really urgent for me.", "It is an emergency.", "This is an emergency!", "Please answer immediately.",
        "It has to be today.",
    ),
    "normal": (
        "", "", "", "", "", "I hope you can help me.", "Please let me know.", "I look forward to your reply.",
        "What should I do?", "Could you check this?", "Please write back.", "Tell me what you need from me.",
        "I bought it last month.", "It was a gift.", "You can reach me by mail.", "It is for my mother.",
    ),
    "low": (
        "No hurry.", "There is no rush.", "Take your time.", "I have time.", "Whenever you have time.", "There is no hurry.",
        "I am in no hurry.", "No need to rush.", "No rush at all.", "Please take your time.", "Whenever you can.",
        "Take all the time you need.", "You do not have to hurry.",
    ),
}

ORDERS = (
    "My order number is {o}.", "Order {o}.", "The order is {o}.", "Order number: {o}", "It was order {o}.", "(order {o})",
    "You find it under {o}.", "My number is {o}.", "See order {o}.", "Ref {o}.", "The number on the box is {o}.",
    "I have order {o}.",
)

OPENINGS = (
    "Hello,", "Hi,", "Hi there,", "Dear team,", "Good morning,", "Good evening,", "Hello again,", "Hey,", "Dear support,",
    "To whom it may concern,", "", "", "", "",
)

CLOSINGS = (
    "Thanks.", "Thank you!", "Best regards", "Bye", "Many thanks", "Thanks a lot.", "Cheers", "", "", "", "", "",
)

# First words of product names: half of them are words, half invented.
BRANDS = (
    *"Aurora Breeze Cobalt Comet Delta Ember Falcon Glacier Harbor Horizon Jasper Lumen Maple Meadow Nimbus Nova".split(),
    *"Orchid Pebble Pioneer Quartz Raven Saffron Sierra Solar Summit Tundra Velvet Willow Zenith Zephyr".split(),
    *"Altero Bravik Calodi Dorsen Elvano Fentro Gralit Hestor Ilvara Jorvik Kelmar Lorano Mistral Norvel Ostara".split(),
    *"Pelvio Quendo Ravelo Sintra Tolvin Ulmara Vantor Welmo Xandor Yelvin Zorvan Brisko Cremona Drakon Fiorel".split(),
)

THINGS = (
    *"Lamp Kettle Chair Speaker Blender Toaster Heater Fan Radio Camera Keyboard Monitor Printer Backpack Tent Bike".split(),
    *"Helmet Watch Drill Mixer Sofa Desk Clock Jacket Mug Scale Router Tablet Headset Vacuum".split(),
    "Water Filter", "Desk Fan", "Garden Hose", "Bread Maker", "Alarm Clock", "Power Bank",
)
KINDS = ("Mini", "Pro", "Smart", "Travel", "Max", "Home")

# Patterns for training: every way through the brackets is a wording. They make the key words of a matter stand in many
# places, so that what is learned is the matter and not a list of sentences.
PATTERNS = {
    "refund": (
        "[I|We] [want|would like|ask for|expect|demand] [a|my|the|our] refund [for|of] [the|my|our|this] {p}.",
        "[Please|Kindly] [send|give|transfer] [me|us] [my|our|the] money [back for|for] [the|my|this] {p}.",
        "[Could|Can|May|Would] [I|we] [have|get|see] [the|my|our] [money|payment|price] [back for|of] [the|this] {p} [back|again|returned]?",
        "[The|My|Our] {p} is [useless|not good|too expensive|a mistake], so [refund|pay back] [me|us|it].",
        "[When|How] will [I|we] [get|see] [the|my|our] [refund|money] for [the|my] {p}?",
        "[I|We] [sent|brought|shipped] [the|my|our] {p} [back|back last week|back in May] and [still have no money|no money has come|got no refund|wait for the refund].",
        "[Can|Could] [you|the shop|your team] [refund|pay back|return] [the price|the full amount|the money|the cost|half] [of|for] [the|my|our] {p}?",
        "[I|We] paid [twice|too much|double] for [the|my|our] {p}, [please refund|refund|pay back] [one payment|the rest|what was too much].",
        "[The|This|Our] {p} [looks different from the picture|is of poor quality|does not please us], [I|we] [want|ask for|expect] [a refund|the money back|to be refunded].",
        "[Was|Is|Has] [my|our|the] {p} [refunded|been refunded|paid back] [yet|already|now]?",
    ),
    "exchange": (
        "[I|We] [want|would like|need|hope] to [exchange|swap|trade] [the|my|our|this] {p} for [a|another] [bigger|smaller|black|white|new|red] one.",
        "[Can|Could|May|Would] [I|we|you] [exchange|swap|change] [the|my|our|this] {p} for [another|a different|a bigger|a smaller] [size|colour|model]?",
        "[The|My|Our|This] {p} [is|has] [the wrong|a wrong|another] [size|colour], [please swap it|an exchange please|I want another one].",
        "[I|We] [would prefer|prefer|need|want] [another|a different] [size|colour|model] [of|instead of|than] [the|this] {p}.",
        "[Can|Could|May] [the|my|our|this] {p} be [exchanged|swapped|changed] for [another|a different|a newer] [size|colour|model]?",
        "[The|My|Our] {p} is too [big|small|large|long|short], [I need|we need|please send] [a bigger one|a smaller one|another size|one that fits].",
        "[I|We] [ordered|wanted|chose] a [blue|black|white|red] {p} and got a [green|brown|pink] one, [please exchange it|can you change it|I would like to swap].",
        "[Instead of|Rather than] [the|this|our] {p} [I|we] [would like|want|need] the [bigger|smaller|other|newer] [model|one|version].",
        "[I am|We are] [hoping|trying] to [exchange|swap] [the|my|our] {p} [for the same in red|for another model|because of its size].",
    ),
    "delivery": (
        "[I|We] [am|are] [still|always] waiting for [the|my|our] {p}.",
        "[Where|Where now] is [the|my|our] [package|parcel|delivery|box] with [the|my|our] {p}?",
        "[The|My|Our] {p} [has not arrived|did not arrive|never arrived|is not here|is late] [yet|again|so far|until now].",
        "[When|On which day] [will|does] [the|my|our] {p} [arrive|come|get here]?",
        "[Please|Can you] [track|trace|look for|find] [the|my|our] [package|parcel|delivery] [with|of] [the|my] {p}.",
        "[The|My|Our] [delivery|shipping|package|parcel] of [the|my] {p} is [late|missing|lost|not here].",
        "[The|My|Our] {p} [should|had to|was meant to] [be here|arrive|come] [on Monday|last week|two days ago|in March] [and did not|but is not here|and nothing came].",
        "[Nothing|No parcel|No package] has [come|arrived] [yet|here|so far], [where is|what about] [the|my|our] {p}?",
        "How [long|many days] [does|will] [the|my|our] {p} [take|need] to [arrive|get here|reach me]?",
        "[Was|Is] [the|my|our] {p} [shipped|sent|posted|delivered|on its way] [yet|already|at all|now]?",
        "[The tracking|The tracking page|The status] of [the|my|our] {p} [says nothing|has not changed|shows no movement].",
        "[I|We] [did not get|never received|have not seen|do not have] [the|my|our] {p} [yet|so far|until today].",
    ),
    "repair": (
        "[The|My|Our|This] {p} is [broken|defective|damaged|dead] [again|now|already|since Friday|and needs help].",
        "[Could|Can|Would] [you|someone|anybody] [repair|fix|mend] [the|my|our|this] {p}?",
        "[Since yesterday|Today|Now|Suddenly] [the|my|our] {p} [does not work|will not start|does not turn on|stopped working].",
        "[A part|One side|The lid|The handle|The glass] of [the|my|our] {p} is [broken|cracked|loose|damaged].",
        "[I|We] [found|see|have] a [crack|fault|hole|defect] in [the|our|my] {p}.",
        "[The|My|Our] {p} makes a [strange|loud|bad] [noise|sound|smell] and [stops|needs a repair|has to be repaired|must be fixed].",
        "[Is it possible|How much is it|Where do I go] to [repair|fix|mend] [the|my|our] {p}?",
        "[The|My|Our|This] {p} [broke|failed|died|fell apart] [yesterday|after a week|after one year|in the holidays|when I used it].",
        "[The|My|Our] {p} [has to be|must be|needs to be] [repaired|fixed|mended].",
        "[Something|A piece|A part] [broke off|came off|fell off|is loose] [on|at] [the|my|our] {p}.",
        "[The|My|Our] {p} no longer [works|starts|runs|charges|closes].",
        "[The|My|Our] {p} [will not|does not] [start|run|charge|close|move] [any more|today|properly|at all].",
    ),
    "cancel": (
        "[I|We] [want|need|have|wish|would like] to cancel [the|my|our|this] {p}.",
        "[Please|Can you|Would you] cancel [the|my|our] [order|purchase] [of|with|for] [the|this] {p}.",
        "[Please stop|Stop|Cancel] [the|my|our] {p}, [I|we] [changed my mind|ordered it by mistake|do not need it|bought another one].",
        "[I|We] [do not need|do not want] [the|my|this] {p} [any more|any longer|now], [cancel it|cancel the order|please cancel].",
        "[Is it possible|Am I able|Is there a way|Is there time] to cancel [the|my|our] {p}?",
        "[The|My|Our] [order|purchase] of the {p} [is|was] [a mistake|an error], [please|so] cancel it.",
        "[Can|Could|May] [the|my|our] order [of|for|with] the {p} be cancelled [today|now|please]?",
        "[I am|We are] cancelling [the|my|our] {p} [today|now|and want no other one].",
        "[Please|Kindly] [confirm|accept] the cancellation of [the|my|our] {p}.",
        "[I|We] changed [my mind|our plans] about [the|this|our] {p}, [cancel|please cancel|so cancel] [it|the order].",
        "[The|My|Our] {p} [is|was] not needed [any more|now], [I want to cancel|please cancel it|so I cancel].",
    ),
    "invoice": (
        "[I|We] [need|want|miss|still miss|cannot see] [the|an|my|our] [invoice|bill|receipt] [for|of] [the|my|our|this] {p}.",
        "[Please|Could you|Kindly] [send|mail|write|give] [me|us] [a copy of the|the|a new|an] [invoice|bill|receipt] [for|of] [the|my|our] {p}.",
        "[The|Our|My] [invoice|bill|receipt] [for|of] [the|my] {p} [is wrong|is lost|has a mistake|has the wrong date|did not come].",
        "[Where|How] [can I|do we|may I] [find|get|see] [the|a|an] [invoice|bill|receipt] for [the|my|our] {p}?",
        "[The|An|My] [invoice|bill|receipt] for [the|my|our] {p} was not [in the box|in the package|in the mail|sent].",
        "[Can|Could] [you|someone] [write|issue|make|email] [an|the|a new] [invoice|bill|receipt] [for|of] [the|my|our] {p}?",
        "[The|My|Our] [name|company|total|price|date] on the [invoice|bill|receipt] [for|of] [the|my|our] {p} is [wrong|not there|not right].",
        "[My boss|Our office|The tax office|My bank|The school] [needs|wants|must have] [the|an] [invoice|bill|receipt] [for|of] [the|our] {p}.",
        "[I|We] paid for [the|my|our] {p} and [got|received|have] no [invoice|bill|receipt].",
        "[I|We] [deleted|lost|cannot open|cannot print] the [invoice|bill|receipt] [of|for] [the|my|our] {p}.",
    ),
}

URGENCY_PATTERNS = {
    "high": (
        "[Please|You must] [hurry|help|answer|act|reply] [at once|right now|immediately|today|right away]!",
        "[It|This|My case] [is|is really|is so|is very] urgent[.|!]",
        "[It|This] [cannot|can not|must not|will not] wait.",
        "[I|We] [need|want|must have] [it|this|an answer|help|a solution] [today|now|immediately|as soon as possible|right away].",
        "[Please|Could you] [answer|reply|call|write back] [right now|this morning|before noon|this very day], [it is urgent|I must not wait|it matters a lot].",
        "[Every hour|Each day|Every minute] [counts|matters], [please hurry|be quick|act fast][.|!]",
        "[This is|It is] [a real|a big|quite an] emergency [for me|for us|here][.|!]",
        "[It is|This is] [most|terribly|so very] urgent[.|!]",
        "[I|We] cannot wait [another day|much longer|for days][.|!]",
    ),
    "normal": (
        "[Please|Could you] [let me know|check|look at it|reply|write to us|tell me].",
        "[I|We] [hope|wait|look forward] [to hear from you|for an answer|to a reply].",
        "It was [a gift|a present] [for|from] my [brother|father|friend|aunt].",
        "[Tell me|Say|Let us know] what [I|we] [can|should|must] do.",
        "[I|We] [got|ordered] it [in|at|from] your [shop|store|web shop] [last year|in May|two months ago].",
        "[My|Our] [phone number|mail] is in [my account|your files].",
        "[I|We] [like|often visit|know] your [shop|store|products].",
        "What is the next step [for me|for us|here]?",
        "[My|Our] [name|account] is [Miller|Novak|Jansen|Rossi].",
    ),
    "low": (
        "[I am|We are|I am really] [not in a hurry|in no hurry|not in a rush|in no rush].",
        "[It|This] is [not|not really|not very|not so] urgent[.| at all.| for us.]",
        "[It|This|All this] can wait [until next week|for some time|a bit|a few days].",
        "[Please|Just] take your time[.|, there is no hurry.|, no hurry.]",
        "[Whenever you can|When you have time|Whenever it is easy], [no rush|no hurry|it is not urgent].",
        "[There is|There is really] no [hurry|rush] [here|at all|with this].",
        "[There is|I have|We have] [enough|a lot of|all the|so much] time[.| for this.| until summer.]",
        "[Next week|Next month|Later|Some other day] is [fine|soon enough|all right] [for me|for us|too].",
        "[An answer|Your answer|All of it] can [come later|wait|take some days|take a while].",
        "[I|We] do not need [it|an answer|this] [soon|quickly|right now|this week].",
        "[Answer|Reply|Write] [when you like|when it suits you|some time], [there is no hurry|no rush|it is not pressing].",
    ),
}

ORDER_PATTERNS = (
    "[My|Our|The] [order|purchase] [number|code] [is|was] {o}.",
    "[Order|Purchase] [code|id]: {o}",
    "[It is|This was|That is] [order|number] {o}.",
    "{o} is [my|our|the] [number|order].",
    "[I|We] [have|got|wrote down] [the number|number|order] {o}.",
    "[Please see|Look at|It concerns|I mean] [order|number|my order] {o}.",
)

SYLLABLES = ("ba be bo da de do fa fi ga go ka ke ko la le lo ma me mi na no pa pe ra ri ro sa se so ta te to va ve vo za zo".split(),
             "bar dan del fen gar hal jin kor lan mir nol pex quin ras sol tan vex wil yor zan".split())

HOLD_OUT_SEED = 4  # drawn before any score of what it holds out; not to be drawn again

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"


def expand(pattern: str) -> tuple[str, ...]:
    """Every way through the [a|b] brackets of a pattern; of an empty text the empty text."""
    parts = [text.split("|") if is_choice else [text] for text, is_choice in _pieces(pattern)]
    return tuple("".join(way) for way in product(*parts))


def _pieces(pattern: str) -> list[tuple[str, bool]]:
    """The pattern cut at its brackets: (text, is a choice)."""
    out: list[tuple[str, bool]] = []
    for piece in re.split(r"(\[[^\]]*\])", pattern):
        out.append((piece[1:-1], True) if piece.startswith("[") else (piece, False))
    return [piece for piece in out if piece[0]]


def core(rng: Random, intent: str, *, held_out: bool = False) -> str:
    """What a message is about."""
    return _wording(rng, CORES[intent], PATTERNS[intent], held_out)


def urgency(rng: Random, label: str, *, held_out: bool = False) -> str:
    """How urgent it is."""
    return _wording(rng, URGENCY[label], URGENCY_PATTERNS[label], held_out)


def order(rng: Random, *, held_out: bool = False) -> str:
    """Which order it is about."""
    return _wording(rng, ORDERS, ORDER_PATTERNS, held_out)


def opening(rng: Random, *, held_out: bool = False) -> str:
    """The first words of a message, or none."""
    return rng.choice(templates(OPENINGS, held_out))


def closing(rng: Random, *, held_out: bool = False) -> str:
    """The last words of a message, or none."""
    return rng.choice(templates(CLOSINGS, held_out))


def _wording(rng: Random, sentences: tuple[str, ...], patterns: tuple[str, ...], held_out: bool) -> str:
    """A sentence of the list, or more often a way through one of the patterns."""
    table = sentences if rng.random() < 0.4 else patterns
    if held_out:
        return rng.choice(expanded(rng.choice(templates(table, True))))
    return rng.choice(rng.choice(_open_to_training(table)))


@cache
def templates(table: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    """The quarter of a table that only `test_unseen.jsonl` asks with, or what is left of it; drawn once, by HOLD_OUT_SEED."""
    distinct = sorted(set(table) - {""})
    drawn = set(Random(HOLD_OUT_SEED).sample(distinct, round(len(distinct) / 4)))
    return tuple(text for text in table if not text or (text in drawn) == held_out)


@cache
def expanded(pattern: str) -> tuple[str, ...]:
    """Every way through a pattern, worked out once."""
    return expand(pattern)


@cache
def _open_to_training(table: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Per template that is not held out its sentences, without those that a part apart from training asks with."""
    found = (tuple(text for text in expanded(one) if text not in apart()) for one in templates(table, False))
    return tuple(sentences for sentences in found if sentences)


@cache
def apart() -> frozenset[str]:
    """Every sentence and name that belongs to another part than training."""
    found: set[str] = set()
    for part in (wordings_validation, wordings_free):
        for table in (part.CORES, part.URGENCY):
            found.update(text for texts in table.values() for text in texts)
        found.update((*part.ORDERS, *part.OPENINGS, *part.CLOSINGS, *part.BRANDS, *part.THINGS, *part.KINDS))
    tables = [*CORES.values(), *PATTERNS.values(), *URGENCY.values(), *URGENCY_PATTERNS.values()]
    for table in (*tables, ORDERS, ORDER_PATTERNS, OPENINGS, CLOSINGS):
        found.update(text for template in templates(table, True) for text in expanded(template))
    return frozenset(found - {""})


def brand(rng: Random) -> str:
    """First word of a product's name; half of them are made from syllables, so that names are copied and not remembered."""
    if rng.random() < 0.5:
        return rng.choice(BRANDS)
    while True:
        name = (rng.choice(SYLLABLES[0]) + rng.choice(SYLLABLES[rng.randrange(2)]) + rng.choice(SYLLABLES[1])).capitalize()
        if name not in apart():
            return name


def thing(rng: Random) -> str:
    """What the product is."""
    return rng.choice(THINGS)


def kind(rng: Random) -> str:
    """Which one of a series it is."""
    return rng.choice(KINDS)


def number(rng: Random) -> str:
    """An order number in one of many styles, so that it is copied as it stands: `ORD-48213`, `482135`, `#4821`, `QRT-4821` ..."""
    return rng.choice(NUMBER_STYLES)(rng)


def style(text: str) -> str:
    """What kind of number it is: `QRT-4821` is `AAA-9999`."""
    return "".join("9" if sign.isdigit() else "A" if sign.isalpha() else sign for sign in text)


@cache
def styles_apart() -> frozenset[str]:
    """The styles of numbers that belong to the validation wordings or to the free ones."""
    rng = Random(0)
    return frozenset(style(part.number(rng)) for part in (wordings_validation, wordings_free) for _ in range(500))


def digits(rng: Random, count: int) -> str:
    """So many digits, the first one not zero."""
    return str(rng.randrange(10 ** (count - 1), 10**count))


def letters(rng: Random, count: int) -> str:
    """So many capitals."""
    return "".join(rng.choice(LETTERS) for _ in range(count))


NUMBER_STYLES = (
    lambda rng: f"ORD-{digits(rng, 5)}",
    lambda rng: digits(rng, 6),
    lambda rng: digits(rng, 8),
    lambda rng: f"#{digits(rng, 4)}",
    lambda rng: f"{letters(rng, 3)}-{digits(rng, 4)}",
    lambda rng: f"{letters(rng, 1)}{digits(rng, 6)}",
    lambda rng: f"{digits(rng, 4)}/{letters(rng, 2)}",
    lambda rng: f"{digits(rng, 3)}-{digits(rng, 4)}-{digits(rng, 2)}",
)

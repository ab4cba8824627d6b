# ruff: noqa: SIM905 (word lists are read and edited as running text)
# fmt: off
"""Wordings, products and order numbers of half of `validation.jsonl`: training never sees one of them.

They stand in for the unseen part while a recipe is chosen, so that the unseen part itself need not be looked at.
`{p}` is the product, `{o}` the order number.
"""

from __future__ import annotations

from random import Random

CORES = {
    "refund": (
        "We would love a refund for our {p}.", "Please send my money back, the {p} is not for me.",
        "The money for the {p} should come back to me.", "Is a refund possible for the {p}?",
        "I ask for a full refund of the {p}.", "I paid for the {p} and want that money back.",
        "My sister sent the {p} back in April and no money has reached her.",
        "I had hoped for more from the {p}, is there a way to get refunded?",
        "The {p} was sold for half the price a day later, please pay me the rest.",
        "Because the {p} came too late for the party, I would rather have my money.",
        "Your shop still owes us the money for the {p}.",
    ),
    "exchange": (
        "Would you swap our {p} for a bigger size?", "We need to exchange this {p} for a black one.",
        "I would rather have another colour instead of this {p}.", "The {p} has the wrong size, so please swap it.",
        "May I exchange the {p} that I got?", "A larger size instead of the {p} would be better for me.",
        "The {p} is fine, but the red looks better in my room, can I swap?",
        "Our {p} doesn't match the other one, so we'd like to exchange it.",
        "What would it cost to swap the {p} for the bigger brother?",
        "I got the {p} as a present, yet it is one size too small. Do you exchange it?",
        "Give me the black version instead of the white {p}, please.",
    ),
    "delivery": (
        "We are still waiting for our {p} to arrive.", "Do you know when the {p} will arrive?",
        "The delivery of my {p} is late again.", "The package with the {p} never arrived here.",
        "Please track my {p}, it has not arrived.", "Where is the parcel with our {p} now?",
        "The driver left a card, but where did he put the {p}?", "Three weeks have passed and the {p} hasn't reached us.",
        "Could you check which truck carries the {p}?", "Your mail says that the {p} is on the way, when will it be here?",
        "It looks as if the parcel with the {p} went to another town.",
    ),
    "repair": (
        "Our {p} is broken and needs a repair.", "Since Monday the {p} does not work.", "Could you fix our {p}?",
        "The handle of the {p} is broken.", "The {p} stopped working again.", "I think my {p} is broken, please repair it.",
        "When I press the switch of the {p}, nothing happens.", "The {p} was fine for a year, but now it stopped.",
        "Who takes care of repairs of the {p} in my town?", "Water came into the {p} and it doesn't work since then.",
        "The {p} shows an error all the time, can it be fixed?",
    ),
    "cancel": (
        "We must cancel our {p}.", "Could you cancel the order with the {p}?", "Cancel the {p} that I bought, I do not like it.",
        "Please cancel, I ordered the {p} by mistake.", "I no longer need the {p} and want to cancel.",
        "Is it too late to cancel the {p}?",
        "Just after ordering I saw that the {p} is too wide for us, so cancel it please.",
        "The {p} is no longer wanted, please stop it before it leaves.", "I'd like to take back my order of the {p}.",
        "How do we get out of the order of the {p}? We want to cancel.",
        "My mother ordered a {p} without asking me, it should be cancelled.",
    ),
    "invoice": (
        "May I have an invoice for our {p}?", "Please send a copy of the bill for my {p}.",
        "I cannot find the receipt of the {p}.", "We still need the invoice of our {p}.",
        "The bill for the {p} has the wrong tax.", "A new receipt for the {p} would help me.",
        "The bookkeeping still waits for the bill of the {p}.", "On the invoice of the {p} you wrote the old company name.",
        "I'd need the receipt of the {p} once more, the dog ate it.", "Is it possible to get the invoice for the {p} in English?",
        "We were told that the bill for the {p} comes by post, it never did.",
    ),
}

URGENCY = {
    "high": (
        "Please, this is urgent for us!", "We need it solved today.", "As soon as possible, please!", "This is really urgent.",
        "Please help immediately.", "For us it is an emergency.",
        "By tonight I have to know.", "Please drop everything else, this is urgent.", "We're in real trouble, so answer at once.",
        "It has to happen today, not tomorrow.",
    ),
    "normal": (
        "", "", "Please check and let me know.", "I hope to get a reply.", "It was a gift for my sister.",
        "Tell me what I should do.",
        "We found you through a friend.", "I'd be glad about an answer.", "The colour is lovely, by the way.",
        "Please tell me what you can do.",
    ),
    "low": (
        "Please take your time, no rush.", "There is no hurry at all.", "I am in no rush.", "Take the time you need.",
        "Whenever it suits you, no hurry.", "No need to hurry.",
        "It can wait, I'm on holiday anyway.", "Whenever you find a quiet moment.", "There's no need to answer quickly.",
        "I don't mind waiting a few weeks.",
    ),
}

ORDERS = (
    "Please look at order {o}.", "Number {o}.", "Our order number was {o}.", "The order has the number {o}.",
    "This is about order {o}.",
    "The label on my parcel reads {o}.", "Filed under {o}, I think.", "{o}, that is the order.",
)

OPENINGS = (
    "Good day,", "Hello team,", "Dear all,", "Greetings,", "Good day to you,", "Hello dear people,", "", "", "",
)

CLOSINGS = (
    "Kind regards", "Thank you very much.", "Yours", "Best wishes", "So long", "Yours faithfully", "", "", "",
)

# First words of product names: half of them are words, half invented.
BRANDS = (
    *"Amber Canyon Crystal Dune Fjord Granite Iris Lagoon Onyx Prairie Ruby Stellar Thunder Violet".split(),
    *"Arvelo Bontri Celvar Dimaro Ergova Folvent Grimlo Halvero Imperon Juntiva Kordel Limbra Morvath Nestari".split(),
)
THINGS = (
    *"Grill Freezer Scooter Guitar Mirror Ladder Pillow Projector Shaver Trolley Saw Lantern".split(), "Tea Maker", "Wall Shelf",
)
KINDS = ("Ultra", "Light", "Prime")


def number(rng: Random) -> str:
    """An order number in a style of its own: `C48-2135` or `48213-F`."""
    if rng.random() < 0.5:
        return f"C{rng.randrange(10, 100)}-{rng.randrange(1000, 10_000)}"
    return f"{rng.randrange(10_000, 100_000)}-{rng.choice('ABCDEFGH')}"

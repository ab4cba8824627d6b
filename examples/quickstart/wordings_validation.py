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
    ),
    "exchange": (
        "Would you swap our {p} for a bigger size?", "We need to exchange this {p} for a black one.",
        "I would rather have another colour instead of this {p}.", "The {p} has the wrong size, so please swap it.",
        "May I exchange the {p} that I got?", "A larger size instead of the {p} would be better for me.",
    ),
    "delivery": (
        "We are still waiting for our {p} to arrive.", "Do you know when the {p} will arrive?",
        "The delivery of my {p} is late again.", "The package with the {p} never arrived here.",
        "Please track my {p}, it has not arrived.", "Where is the parcel with our {p} now?",
    ),
    "repair": (
        "Our {p} is broken and needs a repair.", "Since Monday the {p} does not work.", "Could you fix our {p}?",
        "The handle of the {p} is broken.", "The {p} stopped working again.", "I think my {p} is broken, please repair it.",
    ),
    "cancel": (
        "We must cancel our {p}.", "Could you cancel the order with the {p}?", "Cancel the {p} that I bought, I do not like it.",
        "Please cancel, I ordered the {p} by mistake.", "I no longer need the {p} and want to cancel.",
        "Is it too late to cancel the {p}?",
    ),
    "invoice": (
        "May I have an invoice for our {p}?", "Please send a copy of the bill for my {p}.",
        "I cannot find the receipt of the {p}.", "We still need the invoice of our {p}.",
        "The bill for the {p} has the wrong tax.", "A new receipt for the {p} would help me.",
    ),
}

URGENCY = {
    "high": (
        "Please, this is urgent for us!", "We need it solved today.", "As soon as possible, please!", "This is really urgent.",
        "Please help immediately.", "For us it is an emergency.",
    ),
    "normal": (
        "", "", "Please check and let me know.", "I hope to get a reply.", "It was a gift for my sister.",
        "Tell me what I should do.",
    ),
    "low": (
        "Please take your time, no rush.", "There is no hurry at all.", "I am in no rush.", "Take the time you need.",
        "Whenever it suits you, no hurry.", "No need to hurry.",
    ),
}

ORDERS = (
    "Please look at order {o}.", "Number {o}.", "Our order number was {o}.", "The order has the number {o}.",
    "This is about order {o}.",
)

OPENINGS = (
    "Good day,", "Hello team,", "Dear all,", "Greetings,", "", "",
)

CLOSINGS = (
    "Kind regards", "Thank you very much.", "Yours", "Best wishes", "", "",
)

# First words of product names: half of them are words, half invented.
BRANDS = (
    *"Amber Canyon Crystal Dune Fjord Granite Iris Lagoon Onyx Prairie Ruby Stellar Thunder Violet".split(),
    *"Arvelo Bontri Celvar Dimaro Ergova Folvent Grimlo Halvero Imperon Juntiva Kordel Limbra Morvath Nestari".split(),
)
THINGS = tuple("Grill Freezer Scooter Guitar Mirror Ladder Pillow Projector Shaver Trolley Saw Lantern".split())
KINDS = ("Ultra", "Light", "Prime")


def number(rng: Random) -> str:
    """An order number in a style of its own: `C48-2135` or `48213-F`."""
    if rng.random() < 0.5:
        return f"C{rng.randrange(10, 100)}-{rng.randrange(1000, 10_000)}"
    return f"{rng.randrange(10_000, 100_000)}-{rng.choice('ABCDEFGH')}"

# ruff: noqa: SIM905 (word lists are read and edited as running text)
# fmt: off
"""Wordings, products and order numbers of `test_free.jsonl`: training and validation never see one of them.

Frozen: written before any model was asked about them, by somebody who had not seen which of the earlier ones a model
missed. They are not edited for a score; where a score disappoints, the training side changes (wordings.py, recipe.yaml).
`{p}` is the product, `{o}` the order number.
"""

from __future__ import annotations

from random import Random

CORES = {
    "refund": (
        "My bank statement shows no refund for the {p} so far.",
        "The {p} went back to you two weeks ago and the money is still not on my account.",
        "I'd like to return the {p} and be refunded.",
        "Kindly arrange a refund, since the {p} did not live up to its description.",
        "The box of the {p} had been opened before, so I want the full price back.",
        "Two payments for one {p} left my account, please return one of them.",
        "How long does a refund normally take once the {p} is back with you?",
        "Since the {p} is cheaper in your own shop now, could you pay back the difference?",
        "I only tried the {p} once and it isn't for me. Can you give me my money back?",
        "You promised to refund the {p} last month.",
        "Please put the money for the {p} back on my card.",
        "Our club returned the {p} unopened and expects a refund.",
    ),
    "exchange": (
        "Is there any chance of swapping the {p} for a smaller size?",
        "My daughter would prefer the {p} in white, could we exchange it?",
        "I picked the wrong size when I bought the {p}. Can it be exchanged?",
        "I'm not fond of the colour, so I'd love to trade the {p} for a grey one.",
        "The {p} turned out too big for our house, we'd like the smaller model instead.",
        "Do you exchange opened boxes? The {p} is not the size I had in mind.",
        "Can I bring the {p} to a shop and swap it there for a different colour?",
        "A green {p} came although I picked yellow, please swap them.",
        "What do I have to do to exchange the {p} for the next size up?",
        "Would it be all right to send the {p} in and get a larger one in return?",
        "My wife already has the same {p}, so we'd like to exchange ours for something else.",
        "Please replace the {p} with the model that is one size bigger.",
    ),
    "delivery": (
        "The courier says the {p} was delivered, but nothing is here.",
        "It has been ten days and there is no sign of the {p}.",
        "Has the {p} left your warehouse yet?",
        "Could somebody tell me where the parcel with my {p} is at the moment?",
        "The {p} was supposed to be here on Tuesday and still hasn't come.",
        "I stayed at home all day for the {p}, but nobody delivered it.",
        "Your tracking link for the {p} has been stuck at the same place since last week.",
        "What day can I expect the {p} to arrive?",
        "Half of my shipment came, the {p} did not.",
        "Our {p} must have got lost on the way, please trace the package.",
        "Is it normal that the {p} takes so long to arrive?",
        "I am still missing the delivery with the {p} from early this month.",
    ),
    "repair": (
        "The {p} won't switch on since this morning.",
        "After only two months the {p} has given up, can it be repaired?",
        "There is a crack in the {p} and it leaks.",
        "Something inside the {p} rattles and it stops working after a minute.",
        "Do you have a workshop that could fix our {p}?",
        "A screw of the {p} came loose and now it is dead.",
        "Unfortunately the {p} broke on the very first day.",
        "The {p} gets far too hot and then turns itself off, somebody has to look at it.",
        "I'd like to have the {p} repaired while it is under warranty.",
        "One side of the {p} is broken off, can you mend it?",
        "My son dropped the {p} and the front is cracked, what would a repair cost?",
        "The {p} is faulty, please tell me how to get it fixed.",
    ),
    "cancel": (
        "Has the {p} been sent already? If not, I'd like to cancel it.",
        "We've found a better offer, so kindly cancel the purchase of the {p}.",
        "There is no need for the {p} any longer, could you stop the order?",
        "Please take the {p} off my order, I don't want it after all.",
        "My husband has already got a {p}, so please cancel mine.",
        "I pressed the button twice, so one {p} too many was ordered. Cancel it, please.",
        "What is the last day on which I can cancel the {p}?",
        "I'm writing to cancel the {p} that I put on order last night.",
        "Don't ship the {p}, please, I have decided against it.",
        "Due to a change in our plans, the order for the {p} has to be cancelled.",
        "Could the {p} still be cancelled without a fee?",
        "I am withdrawing from my purchase of the {p}, please confirm that it is cancelled.",
    ),
    "invoice": (
        "Our accountant is asking for the invoice of the {p}.",
        "Could the invoice for the {p} be made out to my employer?",
        "The amount on the bill for the {p} doesn't match what I paid.",
        "I threw away the receipt for the {p} by accident, is there a way to get it again?",
        "Please e-mail a PDF of the invoice for the {p}.",
        "For the warranty I need proof of purchase, so please send the receipt of the {p}.",
        "Our VAT number is missing from the invoice for the {p}.",
        "Where on your website do I download the bill for the {p}?",
        "Nobody has sent us an invoice for the {p} so far.",
        "The street on the invoice for the {p} has a typing error, please issue it again.",
        "I have to hand in the receipt for the {p} with my tax papers.",
        "Can you print my name on the receipt for the {p}?",
    ),
}

URGENCY = {
    "high": (
        "This really cannot wait until tomorrow.", "I'd be grateful for an answer within the hour.", "Please treat this as urgent.",
        "We open tomorrow morning, so this must be sorted out today.", "Time is running out, please act immediately.",
        "I need to hear from you right away.", "Please deal with this first, it's an emergency for our family.",
        "The matter is extremely urgent.", "Could you get back to me immediately?", "I can't wait any longer, please do something today.",
    ),
    "normal": (
        "", "", "", "I look forward to hearing what you think.", "A short reply would be nice.", "We have been customers for many years.",
        "Could you tell me what happens next?", "It was a birthday present for my nephew.", "I bought it online in your spring sale.",
        "Please drop me a line.", "My neighbour recommended your shop.",
    ),
    "low": (
        "Don't rush on my account.", "There's plenty of time, I don't need it soon.", "A reply next week is early enough.",
        "It's not urgent in the least.", "Answer whenever it fits into your day, I'm in no hurry.",
        "We can wait, so please take care of the others first.", "No rush from our side.", "Any time this month is fine.",
        "You may take as long as you like.", "There is really no need to hurry with this.",
    ),
}

ORDERS = (
    "I ordered it under number {o}.", "Reference: {o}.", "The confirmation mail says {o}.", "{o} is what it says on my order slip.",
    "In your system it should be filed as order {o}.", "My purchase has the number {o}.", "Order no. {o}", "It belongs to order {o}.",
    "(my order: {o})",
)

OPENINGS = ("Good afternoon,", "Dear customer service,", "Hello everyone,", "Hi folks,", "Dear Sir or Madam,", "", "", "")

CLOSINGS = ("With kind regards", "Thank you for your help.", "Have a nice day!", "Sincerely", "Thanks in advance.", "", "", "")

# First words of product names: half of them are words, half invented.
BRANDS = (
    *"Anchor Beacon Cedar Harvest Juniper Lotus Magnet Nectar Otter Pepper Rocket Silver Timber Voyager Walnut Yonder".split(),
    *"Avenlo Beltrix Corvani Dastel Elmora Fenwick Galdor Hirvana Izenko Jardel Kavelo Lumbrix Myrano Nolvex Oskari Pranto".split(),
)
THINGS = (
    *"Dishwasher Microwave Trimmer Razor Stroller Headlamp Telescope Thermostat Doorbell Sander Treadmill Dehumidifier".split(),
    "Coffee Grinder", "Rice Cooker", "Air Pump", "Hair Dryer",
)
KINDS = ("Plus", "Classic", "Compact", "Go")

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"


def number(rng: Random) -> str:
    """An order number in a style of its own: `SO-482135`, `14-90233` or `KT48213`."""
    style = rng.randrange(3)
    if style == 0:
        return f"SO-{rng.randrange(100_000, 1_000_000)}"
    if style == 1:
        return f"{rng.randrange(10, 100)}-{rng.randrange(10_000, 100_000)}"
    return f"{rng.choice(LETTERS)}{rng.choice(LETTERS)}{rng.randrange(10_000, 100_000)}"

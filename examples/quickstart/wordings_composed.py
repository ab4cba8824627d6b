# fmt: off
"""What training has beside wordings.py: sentences put together from small parts (what is wanted or what is the matter, and
who says it how), more ways to tell the urgency and the order number, more names and styles of numbers.

The deciding words stand in many surroundings, so that they are learned and not the sentences. `{p}` is the product, `{o}`
the order number. `test.jsonl` has nothing of this file.
"""

from __future__ import annotations

import re
from random import Random

from wordings import digits, expanded, letters, style, styles_apart

# What the customer wants to do: follows "to".
WISHES = {
    "refund": (
        "get a refund for the {p}", "get my money back for the {p}", "have the money for the {p} back", "be refunded for the {p}",
        "return the {p} for a refund", "send the {p} back and get the money", "get back what I paid for the {p}",
        "see the money for the {p} again", "be paid back for the {p}", "ask for a refund of the {p}", "claim the price of the {p} back",
        "have the payment for the {p} returned", "get the full price of the {p} back", "be reimbursed for the {p}",
        "have my money instead of the {p}", "get some money back for the {p}",
    ),
    "exchange": (
        "exchange the {p} for another one", "swap the {p} for a bigger one", "exchange the {p}", "swap the {p}",
        "get the {p} in another colour", "have another size of the {p}", "change the {p} for the red one",
        "trade the {p} for a smaller model", "replace the {p} with a larger one", "get a different size instead of the {p}",
        "have the {p} exchanged", "switch to a bigger size of the {p}", "have the white one instead of the {p}",
        "return the {p} and get the next size", "take another model instead of the {p}", "have the {p} in green",
    ),
    "delivery": (
        "know where the {p} is", "know when the {p} arrives", "track the parcel with the {p}", "find out when the {p} will come",
        "trace the {p}", "hear when the {p} is delivered", "learn where the package with the {p} is",
        "know why the {p} has not arrived", "have the {p} delivered at last", "know on which day the {p} gets here",
        "follow the way of the {p}", "know if the {p} was shipped", "know who has the parcel with the {p}",
        "ask about the delivery of the {p}", "know how long the {p} still takes",
    ),
    "repair": (
        "have the {p} repaired", "get the {p} fixed", "repair the {p}", "know who can fix the {p}", "have the broken {p} mended",
        "find somebody who repairs the {p}", "get help with the broken {p}", "have the fault of the {p} looked at",
        "bring the {p} in for a repair", "make the {p} work again", "get a new part for the broken {p}", "send the {p} in to be fixed",
        "know what a repair of the {p} costs", "have a look at the damaged {p}",
    ),
    "cancel": (
        "cancel the {p}", "cancel the order of the {p}", "stop the order of the {p}", "take the order of the {p} back",
        "withdraw the order of the {p}", "get out of the order of the {p}", "call off the order of the {p}",
        "undo the order of the {p}", "remove the {p} from my order", "have the order of the {p} cancelled",
        "cancel the {p} before it is sent", "stop the {p} from being sent", "end the order of the {p}", "not take the {p} any more",
    ),
    "invoice": (
        "get an invoice for the {p}", "have the bill of the {p}", "get the receipt of the {p}", "have a copy of the invoice for the {p}",
        "find the bill for the {p}", "get a corrected invoice of the {p}", "have the receipt of the {p} once more",
        "get a proof of payment for the {p}", "have the company name on the bill of the {p}", "print the invoice of the {p}",
        "change the address on the invoice for the {p}", "have the bill for the {p} in my mail", "see the tax on the bill for the {p}",
        "download the receipt for the {p}",
    ),
}

# What is the matter: a sentence without its full stop.
MATTERS = {
    "refund": (
        "you still owe me the money for the {p}", "no money for the {p} has come back", "I paid too much for the {p}",
        "my refund for the {p} is missing", "I was charged twice for the {p}", "the {p} is not worth its price and I want my money",
        "I would rather have the money than the {p}", "the money for the {p} has not reached my bank",
        "I sent the {p} back and got no money", "the {p} costs less now, so I want the rest of my money",
        "the {p} is not for me, so I want my money back", "the refund of the {p} takes too long", "half of the money for the {p} is missing",
        "you took the money for the {p} twice", "I returned the {p} and was not paid", "the {p} came too late, so I want a refund",
        "the {p} disappoints us and we want our money back", "my card was charged too much for the {p}",
    ),
    "exchange": (
        "the {p} is too small and I want a bigger one", "the {p} is too big, so I need a smaller one",
        "the {p} has the wrong colour and I want the red one", "you sent the wrong size of the {p}", "I got the {p} in the wrong colour",
        "I want the black one instead of this {p}", "another colour of the {p} would be better", "the {p} does not fit and must be swapped",
        "I ordered a blue {p} but got a green one", "the {p} is the wrong model", "the {p} does not match my room, so I want to swap it",
        "the {p} is one size too large", "the brown {p} should have been white", "I need the {p} one size bigger",
        "the newer model would suit me better than the {p}", "the {p} was a present and has the wrong size",
    ),
    "delivery": (
        "the {p} has not arrived", "the {p} is still not here", "nobody brought the {p}", "the parcel with the {p} is lost",
        "the driver did not bring the {p}", "the {p} is late", "the delivery of the {p} never came", "the {p} went to a wrong address",
        "we are still waiting for the {p}", "the tracking of the {p} shows nothing", "the truck with the {p} did not stop here",
        "the {p} was given to a neighbour", "the package with the {p} is somewhere else", "three weeks passed and there is no {p}",
        "the {p} should be here by now", "you promised the {p} for last week and nothing came", "the post does not have the {p}",
        "the {p} is on its way since May", "I got a message but no {p}",
    ),
    "repair": (
        "the {p} is broken", "the {p} does not work", "the {p} stopped", "the {p} will not start",
        "nothing happens when I use the {p}", "the {p} shows a fault", "the {p} makes a strange noise", "a part of the {p} came off",
        "the {p} fell down and is damaged", "the {p} does not turn on", "the {p} got wet and is dead", "the {p} gets too hot",
        "the handle of the {p} broke", "the {p} worked for a year and then it stopped", "the button of the {p} is stuck", "the {p} has a crack",
        "something inside the {p} is loose", "the {p} smells of smoke", "the light of the {p} is dead", "the {p} turns off by itself",
    ),
    "cancel": (
        "I do not need the {p} any more", "I no longer want the {p}", "I changed my mind about the {p}", "I ordered the {p} by mistake",
        "the order of the {p} was a mistake", "the {p} is no longer needed", "you need not send the {p}", "the {p} must not be sent",
        "the order of the {p} has to be cancelled", "I ordered one {p} too many", "my son ordered the {p} without asking, so cancel it",
        "the {p} is too wide for us, so cancel the order", "I found a cheaper {p} and want to cancel", "we do not want the {p} any longer",
        "the {p} should be cancelled", "I want to stop the {p} before it leaves you", "you can keep the {p}, I cancel",
    ),
    "invoice": (
        "the invoice for the {p} is missing", "there was no receipt with the {p}", "the bill of the {p} is wrong",
        "I lost the receipt of the {p}", "I cannot find the bill for the {p}", "the bill for the {p} never came",
        "the name on the invoice of the {p} is wrong", "my office waits for the bill of the {p}", "the tax on the invoice of the {p} is missing",
        "my child tore the receipt of the {p}", "the {p} came without an invoice", "the invoice of the {p} has an old address",
        "my taxes need the receipt of the {p}", "I cannot open the invoice for the {p}", "the bill for the {p} has the wrong price",
        "a bill for the {p} would help me", "my boss asks for the invoice of the {p}", "the bill for the {p} did not come by post",
    ),
}

WISHED = (
    "I want to {}.", "I would like to {}.", "We would like to {}.", "Is it possible to {}?", "Is there a way to {}?", "How can I {}?",
    "How do we {}?", "Can I {}?", "Could we {}?", "May I {}?", "I need to {}.", "We have to {}.", "I hope to {}.", "My wife wants to {}.",
    "My boss asked me to {}.", "I was told that I can {}.", "Please tell me how to {}.", "Would it be possible to {}?",
    "What must I do to {}?", "I am writing to {}.", "I am trying to {}.", "It would be great to {}.", "All I want is to {}.",
    "Who helps me to {}?", "Please let me {}.", "Help me to {}.", "Am I allowed to {}?", "My father asks how to {}.", "I do not know how to {}.",
    "I tried to {}, but it did not work.", "Is it too late to {}?", "I must {}.", "I am here to {}.", "We wish to {}.", "I want to {}, please.",
    "We decided to {}.", "My neighbour told me to {}.", "Do I need a form to {}?", "Where can I {}?", "When can I {}?",
)
TOLD = (
    "{}.", "{}.", "{}.", "{}!", "I think {}.", "It seems that {}.", "My son says that {}.", "As you can see, {}.", "{}, what now?",
    "{}, can you help?", "{}. What can we do?", "I am sorry to say that {}.", "I am afraid {}.", "We noticed that {}.",
    "{} and nobody tells me why.", "Sadly {}.", "My wife told me that {}.", "Just now I saw that {}.", "The problem is that {}.",
    "I write because {}.", "Please note that {}.", "It is a pity, but {}.", "To be short: {}.", "I must tell you that {}.",
    "You should know that {}.", "{}, that is all.", "{}. Is that normal?", "Believe it or not, {}.", "{}, please help me.",
    "{}, as I said on the phone.", "We are not happy, {}.", "{}, so what do you suggest?",
)
BEFORE = (
    "Because of our party,", "After a long week,", "For my mother,", "As my sister said,", "Since we moved,", "For our office,",
    "After the holidays,", "With my new job,", "On second thoughts,", "As a good customer,", "After reading your page,", "For the school,",
)

URGENCY_PATTERNS = {
    "high": (
        "[By tonight|Before noon|Today|Until tomorrow|At once] [I|we] [have to|must|need to] [know|get an answer|hear from you].",
        "[I|We] need [it|an answer|this|help] [by tonight|before noon|until tomorrow|before Friday|by the end of the day|this minute].",
        "[I|We] [leave|travel|need it] tomorrow, [so hurry|so answer today|so be quick|please be fast].",
        "[I am|We are|I'm|We're] in [real|big|deep] trouble[.|, so answer at once.|, please hurry.]",
        "[It|This] [has to|must] [happen|be done|be solved|be ready] [today|now|at once|by tonight][.|!]",
        "[Please drop everything else|This comes first|Do this first], it [is urgent|is an emergency|cannot wait].",
        "[Hurry|Quick|Be fast|Fast], please[.|!]",
        "[There is|There's|We have|I have] no time [left|to lose|to wait][.|!]",
        "The [deadline|last day] is [today|tomorrow|tonight][.|!]",
    ),
    "normal": (
        "[The colour|The shop|The page|The box] is [lovely|nice|very good], by the way.",
        "[I|We] found you through [a friend|my sister|a magazine|the radio].",
        "[I'd|I would|We would] be [glad|happy] about [an answer|help|a reply].",
        "[Please|Can you] tell me what [you can do|comes next|to do].",
        "[I am|We are|I'm] [a new|an old|a happy] customer.",
        "[It|This] is my [first|second|third] [order|message].",
        "[I|We] use it [every day|at work|at home|with the kids].",
        "[I|We] live in [a small town|the city|the north].",
    ),
    "low": (
        "[I|We] [do not|don't] mind [waiting|a wait of|to wait] [a few weeks|some days|a month|two weeks].",
        "[There is|There's] no need to [answer quickly|hurry|be quick|do it now|answer today].",
        "[It|This] can wait, [I am|I'm|we are] [on holiday|not at home|away] [anyway|until May|for now].",
        "[Whenever|When|Once] you [find|have|get] [a moment|a quiet moment|time|a free minute][.|, no hurry.]",
        "[Next month|In two weeks|Any day|Some time this year|After the holidays] is [fine|early enough|good enough|okay].",
        "[Nothing urgent|Not urgent|Nothing pressing|No pressure][.|, really.|, take your time.]",
        "[I|We] can [wait|wait a while|be patient|wait for weeks].",
        "[Do it|Answer|Write back] [some day|later|next month|when you are free].",
    ),
}

ORDER_PATTERNS = (
    "The [label|paper|bill|mail|receipt|box|parcel|package|invoice|card|app|page] [says|reads|shows|has] {o}[.| on it.| at the top.]",
    "{o} [is written|stands] on the [parcel|bill|receipt|box|label|invoice|package].",
    "[It is filed|I filed it|You have it|It runs|I know it] under {o}[.|, I think.|, if I am right.]",
    "{o}, [that is|this is|it is] [the order|my number|our order|the number][.| in question.]",
    "[Number|No.|Regarding|About|For order|As for] {o}[.|:| again.]",
    "[I think|I believe|If I read it right,] [it is|it was|the number is] {o}.",
)

OPENINGS = (
    "Hello, I'm a bit stuck.", "I've got something to raise.", "Hi, Jonas here.", "Dear shop,", "Dear support team,",
    "Right, here goes.", "Hey Bea,", "Dear Mrs Castellano,", "Ladies and gentlemen,", "Hi, Mrs Okafor speaking.",
)
CLOSINGS = (
    "Warm regards", "Enjoy your day, Lotte", "All the best, Tariq", "Regards, Samir", "Thank you kindly, Moses",
    "Thanks!", "Thank you.", "Ta!", "I appreciate your help.", "Best", "Yours, Beatrice",
)
BRANDS = (
    "Aldervane", "Bexley", "Corvanto", "Dunmark", "Elvora", "Fennwick", "Harlune", "Ivexa", "Kestrel", "Lumeno",
    "Marovia", "Nextra", "Oakmere", "Pellano", "Quorra", "Rivetti", "Solvane", "Tarnby", "Umbrix", "Velora",
    "Wexham", "Xandria", "Yarrow", "Zentiva", "Ambershore", "Brightwell", "Calypso", "Driftline", "Emberly",
    "Foxglove", "Halcyon", "Indigo", "Koralle", "Lodestar", "Monsoon", "Obsidian", "Pinnacle", "Quill", "Redfern",
    "Sparrow", "Thistle", "Upland", "Vantage", "Arkello", "Bravix", "Cindra", "Dovrell", "Estoria", "Fjella",
    "Grumman", "Hestia", "Isolde", "Jaspero", "Kuvari", "Lanmark", "Mirell", "Norwin", "Ostrava", "Panthera",
    "Quentis", "Rondell", "Sylvaro", "Tekora", "Ursino", "Vindal", "Wolfram", "Xelto", "Yukona", "Zorrin", "Apexon",
    "Birchley", "Copperfield", "Delphi", "Everdale", "Falcona", "Gadwall", "Hollins", "Inverra", "Jetstone",
    "Kilmory", "Larkspur", "Meridian", "Novaro", "Orbita", "Pendragon", "Quantix", "Roxbury", "Stellan", "Trivanti",
    "Unova", "Verdano", "Westfall", "Xirra", "Yolanto", "Zimbra", "Astrel", "Bluefin", "Cascade", "Dynaro",
    "Elmsworth", "Fortuna", "Gravelle", "Hazelton", "Ironbark", "Jubilee", "Kodara", "Lynwood", "Maplin", "Neptuna",
    "Octavia", "Polaro", "Quasaro", "Rimini", "Sahara", "Utopiq", "Vulcan", "Windrose", "Xenith", "Yeltra",
    "Zanetti", "Bordeno", "Clarendon", "Ottermill", "Pemberly", "Skarven",
)
THINGS = (
    "Sandals", "Desk Lamp", "Office Chair", "Headphones", "Sleeping Bag", "Vacuum Cleaner", "Raincoat",
    "Winter Jacket", "Trousers", "Sneakers", "Hiking Boots", "Slippers", "Bathrobe", "Scarf", "Gloves", "Wallet",
    "Suitcase", "Umbrella", "Sunglasses", "Wristwatch", "Loudspeaker", "Mouse", "Laptop", "Webcam", "Microphone",
    "Tripod", "Drone", "Television", "Soundbar", "Ukulele", "Piano Stool", "Drum Kit", "Bicycle", "Skateboard",
    "Bike Lock", "Roof Box", "Child Seat", "Baby Monitor", "High Chair", "Playpen", "Dollhouse", "Train Set",
    "Puzzle", "Board Game", "Football", "Tennis Racket", "Yoga Mat", "Dumbbells", "Rowing Machine", "Swimsuit",
    "Wetsuit", "Kayak", "Fishing Rod", "Lawnmower", "Hedge Trimmer", "Wheelbarrow", "Parasol", "Hammock", "Fire Pit",
    "Bookshelf", "Wardrobe", "Sofa Bed", "Mattress", "Duvet", "Curtains", "Carpet", "Bedside Table", "Coffee Table",
    "Cordless Drill", "Jigsaw", "Toolbox", "Space Heater", "Ceiling Fan", "Fridge", "Washing Machine", "Frying Pan",
    "Saucepan", "Knife Set", "Bread Bin", "Espresso Machine", "Milk Frother", "Waffle Iron", "Juicer",
    "Food Processor", "Ice Maker", "Kitchen Scale", "Bathroom Scale", "Toothbrush", "Steam Iron", "Sewing Machine",
    "Dog Bed", "Cat Tree", "Aquarium", "Bird Feeder", "Binoculars", "Thermos", "Lunchbox", "Picnic Basket",
    "Handbag", "Cardigan", "Pyjamas",
)
KINDS = (
    "Deluxe", "Eco", "Junior", "Slim", "Grand", "Sport", "Silent", "Vintage", "Urban", "Alpine", "Premium", "Basic",
    "Turbo", "Flex", "Nordic", "Royal", "Active", "Comfort", "Rapid", "Solar", "Studio", "Heritage", "Lite", "Trail",
    "Family", "Marine",
)

CONTRACTIONS = (
    ("I would", "I'd"), ("We would", "We'd"), ("I am", "I'm"), ("We are", "We're"), ("do not", "don't"), ("does not", "doesn't"),
    ("did not", "didn't"), ("has not", "hasn't"), ("It is", "It's"), ("cannot", "can't"), ("is not", "isn't"), ("will not", "won't"),
    ("was not", "wasn't"), ("there is", "there's"), ("we are", "we're"), ("There is", "There's"),
)


def core(rng: Random, intent: str) -> str:
    """A wish or a matter in one of its surroundings."""
    if rng.random() < 0.5:
        text = rng.choice(WISHED).format(rng.choice(WISHES[intent]))
    else:
        frame, matter = rng.choice(TOLD), rng.choice(MATTERS[intent])
        text = frame.format(matter[0].upper() + matter[1:] if frame.startswith("{}") else matter)
    if rng.random() < 0.15:
        text = f"{rng.choice(BEFORE)} {text if text.startswith(('I ', 'I,')) else text[0].lower() + text[1:]}"
    text = re.sub(r"\b(the|The) \{p\}", lambda found: rng.choice(_OWNERS[found[1]]) + " {p}", text)
    return contracted(rng, text)


_OWNERS = {"the": ("the", "my", "our", "this", "the"), "The": ("The", "My", "Our", "This", "The")}


def contracted(rng: Random, text: str) -> str:
    """In a third of the cases with its short forms."""
    if rng.random() < 0.35:
        for full, short in CONTRACTIONS:
            text = text.replace(full, short)
    return text


def urgency(rng: Random, label: str) -> str:
    """How urgent it is."""
    return rng.choice(expanded(rng.choice(URGENCY_PATTERNS[label])))


def order(rng: Random) -> str:
    """Which order it is about."""
    return rng.choice(expanded(rng.choice(ORDER_PATTERNS)))


def opening(rng: Random) -> str:
    """The first words of a message."""
    return rng.choice(OPENINGS)


def closing(rng: Random) -> str:
    """The last words of a message."""
    return rng.choice(CLOSINGS)


def brand(rng: Random) -> str:
    """First word of a product's name."""
    return rng.choice(BRANDS)


def thing(rng: Random) -> str:
    """What the product is."""
    return rng.choice(THINGS)


def kind(rng: Random) -> str:
    """Which one of a series it is."""
    return rng.choice(KINDS)


def number(rng: Random) -> str:
    """Groups of digits and letters in any order, with a separator or none: a style of its own in every call."""
    while True:
        groups = [rng.choice((digits, digits, letters))(rng, rng.randrange(1, 6)) for _ in range(rng.randrange(1, 4))]
        text = rng.choice(("", "#", "", "")) + rng.choice(("-", "/", "", "-", ".")).join(groups)
        if 6 <= len(text) <= 11 and any(sign.isdigit() for sign in text) and style(text) not in styles_apart():
            return text

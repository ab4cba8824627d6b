# ruff: noqa: SIM905 (word lists are read and edited as running text)
# fmt: off
"""Words and makers of invented entities for the corpus: names, codes, numbers, dates.

Most entities are made, not listed: a model that has seen a new name in every document learns to copy names, one that
has seen a list learns the list.
"""

from __future__ import annotations

from random import Random

ONSETS = [*"bcdfghjklmnprstvwyz", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "kr", "pl", "pr", "qu", "sh", "sk"]
ONSETS += ["sl", "sm", "sn", "sp", "st", "sw", "th", "tr", "tw", "v", "x", "", "", ""]
VOWELS = [*"aeiouaeiou", "ai", "au", "ea", "ee", "ei", "ia", "ie", "io", "oa", "oo", "ou", "y"]
CODAS = ["", "", "", "", *"bdgklmnprstxz", "ck", "ft", "ld", "ll", "lm", "lt", "mp", "nd", "ng", "nk", "nt", "rd", "rk", "rm"]
CODAS += ["rn", "rt", "sh", "sk", "ss", "st", "th", "ve", "le", "on", "er", "an", "ix", "ora", "us"]

FIRST_NAMES = """Ada Alma Amir Anna Arlo Ben Bela Carl Cora Dana Dina Elif Emma Eric Eva Femi Finn Gina Greta Hana Hugo Ida
Igor Ines Ivan Jack Jana Joel Jon June Kai Karim Kate Lara Leo Lena Lily Luca Maya Mara Max Mia Milo Mina Nadia Nils Nina
Noah Nora Olga Omar Oscar Otto Paul Petra Rana Rita Robin Rosa Ruth Sam Sara Sofia Tara Theo Tom Uma Vera Victor Wendy Yara
Yusuf Zoe""".split()

ADJECTIVES = """amber ancient arctic autumn bitter black blue bold brave bright broken calm clever cold copper coral crimson
crystal curious dark deep distant double dusty early eastern electric empty fast final forest gentle giant gold golden grand
gray green happy hidden high hollow honest humble icy iron jade kind large late lazy light little lonely long loud lucky lunar
magic misty modern narrow new noble northern ocean old open orange pale patient plain proud purple quick quiet rapid red rich
rough round royal ruby rusty sacred sandy secret sharp short silent silver simple slow small smart smooth snowy soft solar
southern spring steady steel stone stormy strange strong summer sunny sweet swift tall tiny velvet warm western white wide
wild windy winter wise wooden yellow young""".split()

NOUNS = """anchor apple arrow basket bear bell bench bird blanket boat book bottle bowl box bridge brush bucket button cabin
candle canyon carpet castle cat chair cherry circle clock cloud coat comet compass corner cottage crown cup curtain desk dog
door dragon drum eagle engine falcon farm feather fence field fire flag flame flower forest fountain fox garden gate glass
guitar hammer harbor hat hawk hill horse house island jacket kettle key kite ladder lake lamp lantern leaf letter lion machine
map market meadow mill mirror monkey moon mountain needle oak orchard owl paint palace paper path pearl pencil piano pillow
pine plate pocket pond pony rabbit radio rain ribbon ring river robot rocket roof rope rose sail shadow shell ship shoe shovel
sky snow sofa spoon star station stone storm stove street sun table tent tiger tower toy train tree trumpet tunnel umbrella
valley vase village violin wagon wall watch water wave wheel whistle window wing wolf yard""".split()

VERBS = """asked baked bought built called carried caught chased cleaned climbed closed collected cooked counted covered
crossed drew dropped fed filled fixed folded followed found gave grew guarded helped hid held kept kicked lifted lost loved
made missed moved needed noticed opened packed painted passed picked placed planted pulled pushed read remembered repaired
returned saved saw sent shook showed sold studied threw told took touched visited wanted washed watched wrote""".split()

ADVERBS = """again almost always away carefully early finally gently happily loudly never often once quickly quietly sadly
slowly soon suddenly today together twice usually yesterday""".split()

COMMON = """able about above accept account across add address afternoon age agree air along already also amount angry another
answer anything area arm around arrive art article back bag ball bank base bath battery beach bed before begin believe below
best better between bill birth bit blood body bottom boy break breakfast brother bus business buy cable call camera can car card
care case cash cause center chance change charge check child choose city class clear close cloth code college come company
computer continue cool copy cost could count country couple course cover create cut date daughter day dear deal decide
deliver delivery depend describe design die difference different dinner do does done down drive during each ear easy eat
either else end enough enter error even evening event ever every evidence exactly example expect explain face fact fail fall
family far father feel few figure find fine finger finish first fit floor follow food foot for forget form found free friend
from front full future game get girl give go goes going gone group guess had hair half hand happen hard has have head hear heat
help her here high him his hold home hope hot hour how however human hundred husband idea if important inside instead interest
into issue its job join just keep kid kitchen know land language last later law lay lead learn least leave left leg less let
letter level lie life like line list listen live long look lose lot love low main make man many mark may maybe mean meet member
mind minute mistake model money month more morning most mother mouth move much must name near nearly need never news next night
nothing notice now number off offer office often once one only open or order other our out outside over own package page pair
paper parent part party past pay people person phone picture piece plan plane plastic play please plug point poor possible post
power prefer present press pretty price private probably problem process product programme pull push put question quite
reach read ready real reason receive record refuse report request rest result return right road room rule run safe same
say schedule screen sea season seat second seem sell send sense serious serve service set seven several shall share she shelf
shop should shoulder show side sign since sing sister sit six size skin sleep small smell so some someone something son sound
space speak special spend stand start state stay step still stop strange street stuff such support suppose sure surface switch
system table take talk taste teach tell ten than that their them then there these they thing think this those though thought
thousand three through throw till time to tomorrow tonight too tool top total touch toward town trip trouble true trust try
turn two type under understand until up urgent use usual very view visit voice wait walk want war warm was waste way wear week
weight well were what when where whether which while who whole whose why will wish with within without woman wonder wood word
work world worry worth would write wrong year yes yet you your""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
COLORS = "red blue green yellow black white orange purple brown gray pink silver".split()
FOODS = """apple bread butter cake carrot cheese cherry chicken corn cream egg fish flour garlic ginger honey lemon lentil milk
mushroom noodle oat onion orange pasta pea pear pepper plum potato rice salt soup spinach sugar tea tomato turnip""".split()
ANIMALS = """ant bear bee bird camel cat cow crab deer dog donkey duck eagle fox frog goat goose hen horse lion mouse owl
pig rabbit sheep snake spider tiger turtle whale wolf zebra""".split()
GOOD = """amazing beautiful brilliant charming cheerful clever comfortable delicious delightful excellent fantastic fresh
friendly fun generous glad good great happy kind lovely nice perfect pleasant superb sweet wonderful""".split()
BAD = """annoying awful bad bitter boring broken cold cruel dirty dreadful dull gloomy horrible lonely nasty noisy painful
poor rude sad sour stale terrible tired ugly unhappy weak worst""".split()
TOPIC_WORDS = {
    "animals": ANIMALS,
    "food": FOODS,
    "weather": "rain snow wind storm cloud sunshine fog frost thunder breeze hail temperature".split(),
    "music": "guitar piano drum song choir concert melody rhythm violin trumpet singer band".split(),
    "sport": "goal match team coach race ball player score league stadium runner tennis".split(),
    "travel": "train ticket airport luggage hotel passport flight journey map tourist ferry harbor".split(),
    "school": "teacher lesson pencil homework exam class student library book chalk spelling pupil".split(),
    "space": "planet star moon rocket comet orbit telescope galaxy astronaut sun satellite crater".split(),
    "garden": "seed flower soil tree leaf shovel rose hedge lawn tulip weed orchard".split(),
    "health": "doctor medicine sleep fever nurse heart exercise clinic vitamin dentist bandage rest".split(),
}


def pseudo_word(rng: Random, syllables: int | None = None) -> str:
    """A pronounceable word that means nothing: 1 to 3 syllables, lower case."""
    word = ""
    for _ in range(syllables or rng.choice((1, 1, 2, 2, 2, 3))):
        word += rng.choice(ONSETS) + rng.choice(VOWELS)
    word += rng.choice(CODAS)
    return word if len(word) > 2 else word + rng.choice("nrstlm") + rng.choice("aeio")


def name(rng: Random) -> str:
    """One capitalised word, mostly invented."""
    return pseudo_word(rng).capitalize() if rng.random() < 0.7 else rng.choice(ADJECTIVES + NOUNS).capitalize()


def title(rng: Random) -> str:
    """A capitalised name of one to three words: `Aurel Bridge`, `Silver Fox`, `Tomik 5`."""
    style = rng.random()
    if style < 0.55:
        return f"{pseudo_word(rng).capitalize()} {rng.choice(NOUNS).capitalize()}"
    if style < 0.70:
        return f"{rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()}"
    if style < 0.82:
        return f"{name(rng)} {name(rng)}"
    if style < 0.90:
        return f"{name(rng)} {rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()}"
    return name(rng) if style < 0.96 else f"{name(rng)} {rng.randint(2, 99)}"


def person(rng: Random) -> str:
    """First name, sometimes with an invented family name."""
    first = rng.choice(FIRST_NAMES) if rng.random() < 0.6 else pseudo_word(rng, 2).capitalize()
    return first if rng.random() < 0.4 else f"{first} {pseudo_word(rng, 2).capitalize()}"


def digits(rng: Random, low: int = 1, high: int = 10) -> str:
    """A string of `low` to `high` digits that does not start with 0."""
    length = rng.randint(low, high)
    return str(rng.randrange(10 ** (length - 1), 10**length))


def letters(rng: Random, low: int = 1, high: int = 4) -> str:
    """Capital letters without meaning."""
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(low, high)))


def code(rng: Random) -> str:
    """An identifier of letters and digits: `KT-48213`, `#5521`, `B7X2`, `90417`."""
    style = rng.random()
    if style < 0.40:
        return f"{letters(rng, 1, 4)}-{digits(rng, 2, 7)}"
    if style < 0.65:
        return digits(rng, 3, 8)
    if style < 0.75:
        return f"#{digits(rng, 3, 7)}"
    if style < 0.88:
        return letters(rng, 1, 3) + digits(rng, 1, 5)
    return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789") for _ in range(rng.randint(4, 7)))


def date(rng: Random) -> str:
    """A date in one of a few notations."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1950, 2049)
    style = rng.random()
    if style < 0.35:
        return f"{year}-{month:02d}-{day:02d}"
    return f"{day} {MONTHS[month - 1]}" if style < 0.7 else f"{MONTHS[month - 1]} {day}"


def clock(rng: Random) -> str:
    """A time of day."""
    return f"{rng.randint(0, 23)}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02d}"


def lower_items(rng: Random, low: int, high: int) -> list[str]:
    """Distinct lower-case words, real or invented."""
    wanted, found = rng.randint(low, high), []
    while len(found) < wanted:
        word = rng.choice(NOUNS) if rng.random() < 0.5 else pseudo_word(rng)
        if word not in found:
            found.append(word)
    return found


def listing(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]

"""Make the quickstart's data: messages to a support desk, and the strict JSON record that each one means.

    python make_data.py OUT_DIR [--seed 17]

Writes train.jsonl (with planted flaws), validation.jsonl, test.jsonl, test_unseen.jsonl, test_free.jsonl and planted.json, which says how
many flaws of each kind there are and at which lines (1-based) of train.jsonl. Same seed, same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that a test can import this file from anywhere

import wordings as seen
import wordings_composed
import wordings_free
import wordings_validation

# Whose words a message is made of: those of training come from two modules, the others from one.
APART = {"validation": wordings_validation, "free": wordings_free}
TABLES = {
    "core": "CORES",
    "urgency": "URGENCY",
    "order": "ORDERS",
    "opening": "OPENINGS",
    "closing": "CLOSINGS",
    "brand": "BRANDS",
    "thing": "THINGS",
    "kind": "KINDS",
}
TEMPLATES = ("core", "urgency", "order", "opening", "closing")  # of which a quarter is held out of training
# How often training takes a piece from wordings_composed and not from wordings.
COMPOSED = {
    "core": 0.1,
    "urgency": 0.15,
    "order": 0.15,
    "opening": 0.1,
    "closing": 0.1,
    "brand": 0.2,
    "thing": 0.3,
    "kind": 0.3,
    "number": 0.1,
}
SEED = 17
SIZES = {"train": 7500, "validation": 160, "test": 240, "test_unseen": 240, "test_free": 200}
FLAWS = {
    "exact_duplicates": 150,
    "near_duplicates": 100,
    "too_short": 40,
    "too_long": 12,
    "low_quality": 240,
    "leaks": 60,
}
MALFORMED_EACH = 10
INTENTS = tuple(seen.CORES)
URGENCIES = tuple(seen.URGENCY)
KEYS = ("intent", "product", "urgency", "order_number")
Row = dict


def record_text(record: dict) -> str:
    """The answer: compact JSON on one line, keys in the order of KEYS."""
    return json.dumps({key: record[key] for key in KEYS}, separators=(",", ":"))


@dataclass
class Desk:
    """Draws messages; never the same order number or the same message twice, whatever the split."""

    rng: Random
    numbers: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)
    count: int = 0

    def words(self, part: str, what: str, *label: str) -> str:
        """A piece of a message in the words of that part. Training takes none that another part asks with."""
        rng = self.rng
        if part == "unseen" and what in TEMPLATES:
            return getattr(seen, what)(rng, *label, held_out=True)
        if part in APART or part == "unseen":
            module = APART.get(part, wordings_free)
            if what == "number":
                return module.number(rng)
            table = getattr(module, TABLES[what])
            return rng.choice(table[label[0]] if label else table)
        while part == "training" and rng.random() < COMPOSED[what]:
            text = getattr(wordings_composed, what)(rng, *label)
            if text not in seen.apart():
                return text
        return getattr(seen, what)(rng, *label)

    def order_number(self, part: str) -> str:
        """In a style of the part, new in every call; training's hold none of those that were drawn for other parts."""
        while True:
            number = self.words(part, "number")
            if number in self.numbers or (part == "training" and any(asked in number for asked in self.asked)):
                continue
            self.numbers.add(number)
            if part != "training":
                self.asked.add(number)
            return number

    def record(self, part: str) -> dict:
        """The facts of one message."""
        rng = self.rng
        product = [self.words(part, "brand"), self.words(part, "thing")]
        if rng.random() < 0.12:
            product.insert(1, self.words(part, "kind"))
        return {
            "intent": rng.choice(INTENTS),
            "product": " ".join(product),
            "urgency": rng.choice(("high", "normal", "normal", "low")),
            "order_number": None if rng.random() < 0.15 else self.order_number(part),
        }

    def compose(self, record: dict, part: str) -> str:
        """The message: opening, what it is about, urgency and order number in any order, closing."""
        rng = self.rng
        middle = [self.words(part, "core", record["intent"]).format(p=record["product"])]
        if record["urgency"] != "normal" or rng.random() >= 0.4:  # a normal matter often says nothing about its urgency
            middle.append(self.words(part, "urgency", record["urgency"]))
        if record["order_number"]:
            middle.append(self.words(part, "order").format(o=record["order_number"]))
        rng.shuffle(middle)
        parts = [self.words(part, "opening"), *middle, self.words(part, "closing")]
        text = " ".join(piece for piece in parts if piece)
        return misspell(rng, text, record) if rng.random() < 0.08 else text

    def row(self, part: str = "training") -> Row:
        """A new row with the right answer and a good score."""
        record = self.record(part)
        message = self.compose(record, part)
        while message in self.messages:
            message = self.compose(record, part)
        self.messages.add(message)
        self.count += 1
        return make_row(message, record_text(record), round(self.rng.uniform(0.75, 0.99), 2), f"msg-{self.count:05d}")


def make_row(message: str, answer: str, score: float, identity: str) -> Row:
    """One row in the OpenAI messages form."""
    turns = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "quality_score": score, "id": identity}


def misspell(rng: Random, text: str, record: dict) -> str:
    """Swap two letters inside one long plain word; names, numbers and words that decide nothing else stay whole."""
    kept = set(record["product"].split())
    words = text.split(" ")
    places = [
        i for i, word in enumerate(words) if len(word) > 5 and word.isalpha() and word.islower() and word not in kept
    ]
    if places:
        place = rng.choice(places)
        word, at = words[place], rng.randrange(1, len(words[place]) - 2)
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


# ---- flaws -----------------------------------------------------------------------------------------------------------


def near_duplicate(rng: Random, row: Row) -> Row:
    """The same row with a small change of casing, wording or punctuation; the same answer."""
    message = row["messages"][0]["content"]
    first = (
        message[0].lower() + message[1:]
        if not message.split(" ")[0].istitle() or message.startswith(("He", "Hi"))
        else message
    )
    changes = (
        message + " Thanks again.",
        message.replace(".", " .", 1),
        message + "!",
        first + " :)",
        "Well, " + message,
    )
    changed = rng.choice([text for text in changes if text != message])
    return make_row(changed, row["messages"][1]["content"], row["quality_score"], row["id"] + "-b")


def low_quality(desk: Desk) -> Row:
    """A row of which the answer is wrong or sloppy, and the score says so (0.7 at most)."""
    row, rng = desk.row(), desk.rng
    record = json.loads(row["messages"][1]["content"])
    others = {"intent": INTENTS, "urgency": URGENCIES}
    style = rng.randrange(5)
    if style <= 1:
        key = ("intent", "urgency")[style]
        record[key] = rng.choice([label for label in others[key] if label != record[key]])
        answer = record_text(record)
    elif style == 2:
        answer = record_text({**record, "product": record["product"].split()[-1].lower()})
    elif style == 3:
        answer = f"The customer writes about {record['intent']} of the {record['product']}, I think."
    else:
        answer = json.dumps({"product": record["product"], "intent": record["intent"].upper()})
    row["messages"][1]["content"] = answer
    row["quality_score"] = rng.choice((0.7, round(rng.uniform(0.05, 0.7), 2)))
    return row


def too_short(rng: Random, at: int) -> Row:
    """A row with fewer than 50 characters over all turns."""
    message = rng.choice(("Hi", "Hello?", "test", "asdf", "Is anyone there?", "ok", "Thanks", "..."))
    return make_row(f"{message} {at}", rng.choice(("ok", "Hello!", "{}", "Noted.")), 0.9, f"short-{at:03d}")


def too_long(desk: Desk) -> Row:
    """A message into which somebody pasted a device log: more than 10,000 characters."""
    row = desk.row()
    lines = [f"{n:04d} state={desk.rng.randrange(10**4)} volt={desk.rng.randrange(300)} fan=on" for n in range(420)]
    row["messages"][0]["content"] += "\n" + "\n".join(lines)
    return row


def malformed(desk: Desk, kind: str) -> bytes:
    """A line that is not JSON, broken in one of the ways that are met in real files."""
    row = desk.row()
    line = json.dumps(row)
    if kind == "cut_line":
        return line[: desk.rng.randrange(30, len(line) - 10)].encode()
    if kind == "python_quotes":
        return repr(row).encode()
    if kind == "trailing_comma":
        return (line[:-1] + ",}").encode()
    return line.encode().replace(b'"content": "', b'"content": "caf\xe9 ', 1)  # invalid_utf8: a byte of Latin-1


MALFORMED = ("cut_line", "python_quotes", "trailing_comma", "invalid_utf8")


# ---- files -----------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """One line of train.jsonl before the lines are shuffled; `twin` is the line that it repeats."""

    data: bytes
    flaw: str | None = None
    twin: Line | None = None


def encode(row: Row) -> bytes:
    """One row as a line without its end."""
    return json.dumps(row, ensure_ascii=False).encode()


def training_lines(desk: Desk, tests: list[Row]) -> list[Line]:
    """All lines of train.jsonl in a shuffled order."""
    rng = desk.rng
    rows = [desk.row() for _ in range(SIZES["train"])]
    lines = [Line(encode(row)) for row in rows]
    chosen = rng.sample(range(len(rows)), FLAWS["exact_duplicates"] + FLAWS["near_duplicates"])
    for number, at in enumerate(chosen):
        exact = number < FLAWS["exact_duplicates"]
        data = lines[at].data if exact else encode(near_duplicate(rng, rows[at]))
        lines.append(Line(data, "exact_duplicates" if exact else "near_duplicates", lines[at]))
    lines += [Line(encode(too_short(rng, at)), "too_short") for at in range(FLAWS["too_short"])]
    lines += [Line(encode(too_long(desk)), "too_long") for _ in range(FLAWS["too_long"])]
    lines += [Line(encode(low_quality(desk)), "low_quality") for _ in range(FLAWS["low_quality"])]
    lines += [
        Line(encode({**row, "id": f"leak-{at:03d}"}), "leaks")
        for at, row in enumerate(rng.sample(tests, FLAWS["leaks"]))
    ]
    lines += [Line(malformed(desk, kind), kind) for kind in MALFORMED for _ in range(MALFORMED_EACH)]
    rng.shuffle(lines)
    return lines


def describe(lines: list[Line]) -> dict:
    """planted.json: per flaw its count and its lines (1-based); for duplicates also the lines that they repeat."""
    places = {id(line): number for number, line in enumerate(lines, 1)}
    found: dict[str, list[int]] = defaultdict(list)
    twins: dict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        if line.twin is None:
            found[line.flaw or "clean"].append(number)
            continue
        pair = (number, places[id(line.twin)])
        # Of two equal lines the later one is the duplicate, whichever was made first.
        later, earlier = (max(pair), min(pair)) if line.flaw == "exact_duplicates" else pair
        found[line.flaw].append(later)
        twins[line.flaw].append(earlier)
    planted: dict = {"rows": len(lines), "clean": len(found["clean"])}
    for flaw in FLAWS:
        planted[flaw] = {"count": len(found[flaw]), "lines": found[flaw]}
        if flaw in twins:
            planted[flaw]["of"] = twins[flaw]
    kinds = {kind: found[kind] for kind in MALFORMED}
    every = sorted(number for numbers in kinds.values() for number in numbers)
    return planted | {"malformed": {"count": len(every), "lines": every, "kinds": kinds}}


def write_data(folder: Path | str, seed: int = SEED) -> dict:
    """Write all files into `folder`; returns what planted.json holds."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    desk = Desk(Random(seed))
    parts = {
        "validation": [desk.row(("seen", "validation")[at % 2]) for at in range(SIZES["validation"])],
        "test": [desk.row("seen") for _ in range(SIZES["test"])],
        "test_unseen": [desk.row("unseen") for _ in range(SIZES["test_unseen"])],
        "test_free": [desk.row("free") for _ in range(SIZES["test_free"])],
    }
    lines = training_lines(desk, parts["test"] + parts["test_unseen"] + parts["test_free"])
    (folder / "train.jsonl").write_bytes(b"".join(line.data + b"\n" for line in lines))
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_bytes(b"".join(encode(row) + b"\n" for row in rows))
    planted = describe(lines)
    (folder / "planted.json").write_text(json.dumps(planted) + "\n")
    return planted


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    planted = write_data(args.out_dir, args.seed)
    flaws = ", ".join(f"{value['count']} {name}" for name, value in planted.items() if isinstance(value, dict))
    print(f"{args.out_dir}: {planted['rows']} training lines, of which {flaws}")


if __name__ == "__main__":
    main()

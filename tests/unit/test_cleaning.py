"""Cleaning of chat rows: each rule takes what it names and nothing else; what is found is flagged, redacted or dropped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from row_parts import keys_of, part_of, part_of_files, row

from tunesmith.errors import DataError, QuestionError, RecipeError
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.stages.prepare.cleaning import checksums
from tunesmith.stages.prepare.cleaning.columns import kinds_of, merge_kinds
from tunesmith.stages.prepare.cleaning.facts import merge_facts, redactions
from tunesmith.stages.prepare.cleaning.judge import Judged, check_cleaning, judge
from tunesmith.stages.prepare.cleaning.question import ask
from tunesmith.stages.prepare.cleaning.repetition import repetition_of
from tunesmith.stages.prepare.cleaning.texts import texts_of
from tunesmith.stages.prepare.layout import PART, VERDICTS

NO_LENGTH = "data.filters.length=null"
ANSWER = "The parcel left our house on Monday and should be with you by Thursday at the latest."


def recipe(*overrides: str) -> Recipe:
    return parse_recipe("name: x\ndata: {sources: [a.jsonl, {path: b.jsonl, split: test, name: held}]}\n", overrides)


def judged(rows: list[dict[str, Any]], *overrides: str) -> Judged:
    return judge(part_of(rows), recipe(NO_LENGTH, *overrides), keys_of)


def gone(found: Judged) -> dict[int, str]:
    return dict(zip(found.verdicts["row"].to_pylist(), found.verdicts["rule"].to_pylist(), strict=True))


def answers(found: Judged) -> list[str]:
    return [turns[-1]["content"] for turns in found.part["turns"].to_pylist()]


def details(found: Judged) -> list[str]:
    return [f"{flag['rule']}: {flag['detail']}" for flag in found.flags.to_pylist()]


# --------------------------------------------------------------------------------------------------- what holds for all


def test_only_rows_that_may_train_go_but_all_are_flagged() -> None:
    key = "AKIA" + "Q2WERTY7UIOPASD3"
    rows = [
        row("My key?", f"It is {key}."),
        row("My key?", f"It is {key}.", source=1),
        row(problem={"code": "DAT-010"}),
    ]
    found = judge(part_of(rows), recipe(NO_LENGTH, "data.filters.secrets.api_keys=drop"), keys_of)
    assert gone(found) == {0: "api_keys"}
    assert found.flags["row"].to_pylist() == [0, 1]
    assert found.verdicts.schema == VERDICTS
    assert found.measured["row"].to_pylist() == [0, 1, 2]


def test_a_row_goes_by_the_first_rule_that_takes_it_with_value_and_threshold() -> None:
    rows = [
        row("Hi", "Ho", meta={"quality_score": 0.1}),
        row("Hello?", ANSWER, meta={"quality_score": 0.1}),
        row("Hello?", ANSWER),
    ]
    found = judge(part_of(rows), recipe(), keys_of)
    assert gone(found) == {0: "too_short", 1: "quality"}
    assert found.verdicts["value"].to_pylist() == [4.0, 0.1]
    assert found.verdicts["threshold"].to_pylist() == [50.0, 0.7]
    assert found.facts["filters"]["quality"] == {"seen": 2, "dropped": 1, "first": [[1, 0.1]]}
    assert found.facts["rules"]["too_short"]["samples"] == [0]


def test_by_default_nothing_but_length_and_quality_drops_and_nothing_is_rewritten() -> None:
    rows = [
        row("Hello there?", ANSWER + " As an AI language model I can't help. <|im_end|>\x07"),
        row("Hello there?", "I'm sorry, but I cannot help with that; write to anna.lee@acme.io, 4111 1111 1111 1111."),
        row("Hello there?", "ha " * 300),
    ]
    part = part_of(rows)
    found = judge(part, recipe(), keys_of)
    assert gone(found) == {}
    assert found.part is part
    assert details(found) == ["control_characters: control characters"]


def test_facts_of_parts_add_up_to_the_facts_of_the_whole() -> None:
    rows = [
        row("Hello?", word * 12, meta={"quality_score": score})
        for word, score in (("yes ", 0.9), ("a b c ", 0.2), ("no", 0.8)) * 9
    ]
    spec = recipe("data.filters.repetition={}", "data.quality=heuristics")
    whole = judge(part_of(rows), spec, keys_of).facts
    parts = [judge(part_of(rows[start : start + 10], first=start), spec, keys_of).facts for start in (0, 10, 20)]
    assert merge_facts(reversed(parts)) == merge_facts([whole])
    assert json.loads(json.dumps(whole)) == whole


def test_the_question_names_the_rows_and_the_key_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("Hi", "Ho")] * 3 + [row("Hello?", ANSWER)] * 7
    facts = judge(part_of(rows), recipe(), keys_of).facts
    with pytest.raises(
        QuestionError, match=r"(?s)DAT-030.*3 of 10 rows \(30.0%\), such as a:0 \(4\), a:1 \(4\).*accept_drop_share=1"
    ):
        ask(recipe(), facts["filters"], lambda number: f"a:{number}")
    for answer in ("data.filters.accept_drop_share=1", "data.filters.length.min_characters=50"):
        ask(recipe(answer), facts["filters"], str)


# --------------------------------------------------------------------------------------------------- columns, expressions


def test_further_columns_are_judged_above_below_and_between() -> None:
    rows = [row("a", "b", meta={"score": value}) for value in (1, "2", 3.5, 5, "bad", None)] + [row("a", "b")]
    assert gone(judged(rows, "data.filters.columns=[{column: score, above: 1, below: 5}]")) == {
        0: "score.score", 3: "score.score", 4: "score.score",
    }  # fmt: skip
    assert set(gone(judged(rows, "data.filters.columns=[{column: score, below: 3.5}]"))) == {2, 3, 4}
    assert gone(judged([row("a", "b", meta={"quality_score": 0.95})], "data.filters.quality.below=0.9")) == {
        0: "quality"
    }


def test_expressions_see_prompt_answer_text_source_and_other_columns() -> None:
    rows = [
        row(("system", "Be kind."), ("user", "Q1"), ("assistant", "short"), meta={"lang": "en", "rank": 3}),
        row("Q2", "a longer answer", meta={"lang": "de", "rank": "2"}),
        row("Q3", "a longer answer", meta={"lang": "en", "fine": True}),
        row(("text", "plain text"), meta={"rank": None}),
    ]

    def kept(*expressions: str) -> list[int]:
        return [n for n in range(4) if n not in gone(judged(rows, f"data.filters.where={json.dumps(expressions)}"))]

    assert kept("length(answer) > 5") == [1, 2], "null is not true"
    assert kept("answer is null or length(answer) > 5") == [1, 2, 3]
    assert kept("prompt = 'Be kind.\nQ1'") == [0]
    assert kept("text like '%longer%' and lang = 'en'") == [2]
    assert kept("rank >= 2") == [0, 1], "numbers written as text are numbers"
    assert kept("fine") == [2]
    assert kept("turns = 3 or characters = 10") == [0, 3]
    assert kept("source = 'a'", "lang = 'en'") == [0, 2]
    found = judged(rows, "data.filters.where=[characters > 0, \"lang = 'en'\"]")
    assert gone(found) == {1: "where.2", 3: "where.2"}
    assert found.verdicts["detail"].to_pylist() == ["lang = 'en'"] * 2


def test_an_expression_means_the_same_in_a_part_without_its_column() -> None:
    parts = [
        part_of([row("a", "b", meta={"rank": "high"})]),
        part_of([row("a", "b", meta={"rank": 2})]),
        part_of([row("a", "b")]),
    ]
    kinds = merge_kinds(map(kinds_of, parts))
    assert kinds == merge_kinds(map(kinds_of, reversed(parts))) == {"rank": "number"}
    spec = recipe(NO_LENGTH, "data.filters.where=[rank > 1]")
    check_cleaning(spec, kinds)
    assert [gone(judge(part, spec, keys_of, kinds=kinds)) for part in parts] == [{0: "where.1"}, {}, {0: "where.1"}]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("scor > 3 or scor is null", "score > 3 or score is null"),
        ("SCORE > 3", "score > 3"),
        ("character < 9", "characters < 9"),
    ],
)
def test_a_column_that_is_not_there_gets_the_one_that_was_meant(asked: str, meant: str) -> None:
    from tunesmith.stages.prepare.reading.frames import true_rows

    table = pa.table({"row": pa.array([], pa.int64()), "score": pa.array([], pa.float64())})
    with pytest.raises(
        RecipeError, match=rf"(?s)no row has a column '{asked.split()[0]}'.*did you mean.*\[\"{re.escape(meant)}\"\]"
    ):
        true_rows(table, [asked], ["characters", "score"])


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("answr = 'a'", "answr"),
        ("length(answer", "Expected: \\), found: EOF"),
        ("characters + 1", "not true or false"),
        ("answer > 3", "numeric"),
        ("url_download(answer) is null", "calls url_download"),
        ("random_int(1, 9) > 4", "calls random_int"),
        ("row_number() over (partition by answer) = 1", "calls over window"),
        ("sum(characters) > 1", "ggregation"),
        ("nonsense(answer)", "nonsense"),
    ],
)
def test_a_bad_expression_is_named(expression: str, why: str) -> None:
    with pytest.raises(
        RecipeError, match=f"(?s)DAT-060 data.filters.where: the expression {re.escape(repr(expression))}.*{why}"
    ):
        check_cleaning(recipe(f"data.filters.where={json.dumps([expression])}"), {"rank": "number"})


# --------------------------------------------------------------------------------------------------- characters, words


def test_control_characters_are_counted_removed_or_dropped() -> None:
    rows = [
        row("Tab\tand\r\nlines é 中 😀", "fine"),
        row("a\x00b", "c\x7f\x1b"),
        row("x", "bad \ufffd text"),
        row("", ""),
    ]
    flagged = judged(rows)
    assert flagged.measured["control_characters"].to_pylist() == [0, 3, 1, 0]
    assert flagged.flags["action"].to_pylist() == ["flag", "flag"]
    assert gone(judged(rows, "data.filters.control_characters=drop")) == {
        1: "control_characters",
        2: "control_characters",
    }
    clean = judged(rows, "data.filters.control_characters=remove")
    assert clean.part["turns"].to_pylist()[1] == [{"role": 1, "content": "ab"}, {"role": 2, "content": "c"}]
    assert answers(clean)[2] == "bad  text"
    assert clean.part["characters"].to_pylist()[1] == 3
    assert clean.part["key"][1].as_py() == keys_of([1, 2], ["ab", "c"], None)[0]
    assert "control_characters" not in judged(rows, "data.filters.control_characters=off").measured.column_names


RESIDUE = [
    ("As an AI language model, I do not eat.", "self_description"),
    ("I'm just an AI assistant and have no body.", "self_description"),
    ("作为一个人工智能语言模型，我没有感觉。", "self_description"),
    ("Done.<|im_end|>", "control_token"),
    ("[INST] Hello [/INST]", "control_token"),
    ("<think>\n\n</think>\n\nFour.", "empty_think"),
    ("It is four.\n### Response:\nFour.", "heading"),
    ("It is four.\nUSER: and five?", "heading"),
    ("It is four.\n\nASSISTANT:", "heading"),
]


@pytest.mark.parametrize(("answer", "kind"), RESIDUE)
def test_residue_is_found(answer: str, kind: str) -> None:
    found = judged([row("What?", answer)], "data.filters.residue={}")
    assert gone(found) == {0: "residue"}
    assert found.verdicts["detail"][0].as_py().startswith(f"{kind}: ")


def test_what_looks_like_residue_and_is_none_stays() -> None:
    rows = [
        row("Are you an AI language model?", "The user: somebody who asks."),
        row("Who made it?", "GPT-3 was created by OpenAI; she was hired as an AI engineer."),
        row("As an AI language model, what do you do?", "I answer."),
        row("What is said?", "<think>Two and two.</think>\nFour."),
        row("How is it written?", "Write `#### Response: none` and `if user: pass`."),
    ]
    assert gone(judged(rows, "data.filters.residue={}")) == {}
    own = judged(rows, "data.filters.residue={phrases: ['SOMEBODY who'], action: flag}")
    assert gone(own) == {}
    assert details(own) == ["residue: phrase: somebody who"]


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but as an AI I cannot do this.",
    "Sorry, I am unable to open links.",
    "Unfortunately, I don't have access to it.",
    '"I cannot provide that."',
    "I must decline.",
    "很抱歉，我无法回答这个问题。",
    "对不起，但我不能这样做。",
    "Lo siento, pero no puedo ayudarte.",
    "Je suis désolé, mais je ne peux pas le faire.",
    "Es tut mir leid, aber ich kann das nicht.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_at_the_start_of_an_answer_is_found(answer: str) -> None:
    assert gone(judged([row("Do it.", answer)], "data.filters.refusals={}")) == {0: "refusal"}


def test_a_refusal_elsewhere_is_none() -> None:
    rows = [
        row("I'm sorry, but I can't come. Please translate.", "Es tut mir leid."),
        row("Why?", "He wrote: I'm sorry, but I cannot come."),
        row("Why?", "I am sorry to hear that. Try again tomorrow."),
        row("Rejected answers may refuse.", extra={"answers": [
            {"role": "rejected", "messages": [{"role": "assistant", "content": REFUSALS[0]}]},
            {"role": "chosen", "messages": [{"role": "assistant", "content": "Yes."}]},
        ]}),
    ]  # fmt: skip
    assert gone(judged(rows, "data.filters.refusals={}")) == {}
    rows[3] = row("The chosen one may not.", extra={"answers": [
        {"role": "chosen", "messages": [{"role": "assistant", "content": REFUSALS[0]}]}
    ]})  # fmt: skip
    assert gone(judged(rows, "data.filters.refusals={}")) == {3: "refusal"}


def test_repetition_is_measured_as_a_plain_loop_measures_it() -> None:
    rows = [
        row("?", "one two three one two three one two three"),
        row("?", "a line\nanother\na line\n\na line\n"),
        row("?", "no " + "!" * 40 + " stop"),
        row("?", "重复重复重复重复 и снова и снова 😀😀😀"),
        row("?", ""),
        row(("text", "plain\tplain  plain\nplain")),
    ] * 3
    texts = texts_of(part_of(rows)).learned
    found = repetition_of(texts, 2)
    for place, text in enumerate(texts.contents.to_pylist()):
        assert (found.ngrams[place], found.lines[place], found.run[place]) == pytest.approx(slow_repetition(text, 2)), (
            text
        )


def slow_repetition(text: str, n: int) -> tuple[float, float, int]:
    words = re.findall(r"[\u3000-\U0010ffff]|[^ \t\n\r\x0b\x0c\u3000-\U0010ffff]+", text)
    grams = [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]
    lines = [line for line in text.split("\n") if line.strip()]
    again = sum(len(line.encode()) for place, line in enumerate(lines) if line in lines[:place])
    runs = [len(match.group()) for match in re.finditer(r"([!-~])\1*", text)]
    longest = max((run for run in runs if run > 2), default=min(1, len(text)))
    return (
        1 - len(set(grams)) / len(grams) if grams else 0.0,
        again / max(1, sum(len(line.encode()) for line in lines)),
        longest,
    )


def test_answers_that_repeat_themselves_go() -> None:
    rows = [
        row("ha " * 99, ANSWER),
        row("?", "I will help you with that. " * 20),
        row("?", "one\ntwo\n" * 9),
        row("?", "=" * 101),
    ]
    assert gone(judged(rows, "data.filters.repetition={}")) == {
        1: "repeated_ngrams",
        2: "repeated_ngrams",
        3: "longest_run",
    }
    lines = judged(rows, "data.filters.repetition={max_repeated_ngrams: 1}")
    assert gone(lines) == {2: "repeated_lines", 3: "longest_run"}
    assert (
        gone(judged(rows, "data.filters.repetition={max_repeated_ngrams: 1, max_repeated_lines: 1, max_run: 101}"))
        == {}
    )


def test_languages_are_told_and_short_texts_are_kept() -> None:
    pytest.importorskip("py3langid")
    rows = [
        row("Where is my parcel, please? I have waited for a week.", ANSWER),
        row(
            "Wo ist mein Paket, bitte?",
            "Es hat unser Haus am Montag verlassen und sollte bis Donnerstag bei Ihnen sein.",
        ),
        row("Hallo?", "Ja."),
    ]
    found = judged(rows, "data.filters.language={keep: [en, fr]}")
    assert gone(found) == {1: "language"}
    assert found.verdicts["detail"].to_pylist() == ["de"]
    assert found.facts["languages"] == {"en": 1, "de": 1, "undecided": 1}
    assert gone(judged(rows, "data.filters.language={keep: [de], of: answer}")) == {0: "language"}
    with pytest.raises(RecipeError, match=r"DAT-063 data.filters.language.keep: 'english' is no language"):
        check_cleaning(recipe("data.filters.language={keep: [english]}"), {})


def test_a_missing_language_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from tunesmith.stages.prepare.cleaning import language

    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language._identifier.cache_clear()
    with pytest.raises(DataError, match=r"(?s)DAT-062.*pip install 'tunesmith\[language\]'"):
        check_cleaning(recipe("data.filters.language={keep: [en]}"), {})


# --------------------------------------------------------------------------------------------------- secrets, personal data

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "AWS access key": "AKIA" + "Q2WERTY7UIOPASD3",
    "GitHub token": "ghp_" + "a1B2" * 9,
    "GitLab token": "glpat-" + "x9_Y" * 5,
    "Anthropic key": "sk-ant-api03-" + "Ab1_" * 22 + "AA",
    "OpenAI key": "sk-proj-" + "Zz9-" * 12 + "Q",
    "Hugging Face token": "hf_" + "abCd" * 8 + "eF",
    "Google key": "AIza" + "Sy_" * 11 + "Dd",
    "Slack token": "xoxb-" + "123456789012-" * 2 + "AbCdEf",
    "Stripe key": "sk_live_" + "4eC3" * 6,
    "SendGrid key": "SG." + "a" * 22 + "." + "b" * 43,
    "npm token": "npm_" + "q7Q7" * 9,
    "Telegram bot token": "123456789:AA" + "Hh-" * 11,
    "password in a URL": "postgres://admin:s3cretW0rd@db.acme.io",
}
TOKEN = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJlLWhlcmU"
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEA" * 5 + "\n-----END RSA " + "PRIVATE KEY-----"


@pytest.mark.parametrize("name", SECRETS)
def test_a_key_of_a_known_shape_is_found_and_redacted(name: str) -> None:
    found = judged([row("What is it?", f"Take {SECRETS[name]}, please.")], "data.filters.secrets.api_keys=redact")
    assert details(found) == [f"api_keys: {name}"]
    redacted = "Take [API_KEY], please." if "URL" not in name else "Take postgres://admin:[API_KEY]@db.acme.io, please."
    assert answers(found) == [redacted]
    assert found.part["key"][0].as_py() == keys_of([1, 2], ["What is it?", redacted], None)[0]
    assert SECRETS[name] not in str(found.flags.to_pylist())


def test_private_keys_and_web_tokens() -> None:
    rows = [
        row("?", f"Key:\n{PEM}\nEnd."),
        row("?", f"Bearer {TOKEN}"),
        row("?", "eyJub3QiOiJvbmUifQ.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"),
    ]
    found = judged(rows, "data.filters.secrets={private_keys: redact, tokens: drop}")
    assert answers(found)[0] == "Key:\n[PRIVATE_KEY]\nEnd."
    assert gone(found) == {1: "tokens"}
    assert found.measured["secrets"].to_pylist() == [1, 1, 0]


def test_of_two_finds_in_one_place_the_surer_one_stays() -> None:
    found = judged(
        [row("?", SECRETS["password in a URL"])],
        "data.filters.secrets.api_keys=redact",
        "data.filters.pii.email=redact",
    )
    assert answers(found) == ["postgres://admin:[API_KEY]@db.acme.io"]
    assert details(found) == ["api_keys: password in a URL"]


@pytest.mark.parametrize(
    "piece", ["-----BEGIN PRIVATE " + "KEY-----\n", "eyJaaaaaaaaa-", "a@", "1 ", "+49 (", "aaaa:", "<think>  "]
)
def test_no_text_makes_the_search_take_squared_time(piece: str) -> None:
    """Of a square of 300,000 characters this test would not come back."""
    text = f"{TOKEN} a@acme.io {piece * (300_000 // len(piece))}!"
    pii = "data.filters.pii={email: flag, phone: flag, iban: flag, card: flag, ip: flag, national_id: flag}"
    assert "tokens: JSON web token" in details(judged([row("?", text)], pii, "data.filters.residue={}"))


def test_what_only_looks_like_a_secret_is_none() -> None:
    harmless = ["sk-learn and sk-proj-x", "AKIA is a prefix", "https://user:password@host", "git@github.com:acme/tool.git",
                "-----BEGIN PUBLIC KEY-----", "hf_hub_download", "xAKIA" + "Q2WERTY7UIOPASD3", "AKIA" + "Q2WERTY7UIOPASD3" + "Z"]  # fmt: skip
    assert details(judged([row("?", text) for text in harmless])) == []


PERSONAL = [
    ("email", "Write to anna.lee+shop@acme-corp.co.uk.", "Write to [EMAIL]."),
    ("phone", "Call +49 (30) 1234-5678 or (415) 867-5309 now", "Call [PHONE] or [PHONE] now"),
    ("phone", "电话13812345678。", "电话[PHONE]。"),
    ("iban", "IBAN DE89 3704 0044 0532 0130 00, thanks", "IBAN [IBAN], thanks"),
    ("card", "card 4111-1111-1111-1111 and 378282246310005.", "card [CARD] and [CARD]."),
    ("ip", "from 8.8.8.8 and 2001:4860:4860::8888", "from [IP] and [IP]"),
    ("national_id", "身份证号11010519491231002X", "身份证号[ID]"),
    ("national_id", "DNI 12345678Z, CF RSSMRA85T10A562S", "DNI [ID], CF [ID]"),
    ("national_id", "CPF 111.444.777-35 NIR 2 55 08 14 168 025 38", "CPF [ID] NIR [ID]"),
    ("national_id", "PESEL 44051401359 hetu 131052-308T pnr 811218-9876", "PESEL [ID] hetu [ID] pnr [ID]"),
    ("national_id", "RRN 850101-1234566 Aadhaar 2341 2341 2346", "RRN [ID] Aadhaar [ID]"),
]
HARMLESS = [
    ("email", "user@localhost, me@example.com, @handle, a@b"),
    ("phone", "1234 5678, 2024-01-15, 3.14159265358979, +1 (212) 555-0123, (555) 123-4567, 192.168.0.1, 1111111111111"),
    ("iban", "DE89 3704 0044 0532 0130 01 and GB00 1234"),
    ("card", "4111 1111 1111 1112, 0000 0000 0000 0000, 1234567890123456789012"),
    ("ip", "127.0.0.1, 192.168.1.1, version 8.8.8.8, v1.2.3.4, 12:30:45, 999.1.1.1, std::vec::Vec"),
    ("national_id", "11010519491231002Y, 12345678A, 111.444.777-36, 44051401358, 2341 2341 2345, 850101-1234567"),
]


@pytest.mark.parametrize(("kind", "text", "clean"), PERSONAL)
def test_personal_data_is_redacted_by_pattern_and_checksum(kind: str, text: str, clean: str) -> None:
    found = judged([row("?", text)], f"data.filters.pii.{kind}=redact")
    assert answers(found) == [clean]
    assert found.flags["count"].to_pylist() == [clean.count("[")]
    assert found.facts["rules"][kind] == {"dropped": 0, "flagged": 0, "redacted": 1, "samples": [0]}
    assert gone(judged([row("?", text)], f"data.filters.pii.{kind}=drop")) == {0: kind}
    assert judged([row("?", text)], f"data.filters.pii.{kind}=off").flags.num_rows == 0


@pytest.mark.parametrize(("kind", "text"), HARMLESS)
def test_what_has_no_right_checksum_is_not_personal(kind: str, text: str) -> None:
    found = judged([row("?", text)], f"data.filters.pii.{kind}=redact")
    assert answers(found) == [text]


def test_a_wrong_digit_is_noticed_by_every_checksum() -> None:
    right = {
        checksums.is_iban: "GB82WEST12345698765432", checksums.is_card: "5555555555554444",
        checksums.is_chinese_id: "11010519491231002X", checksums.is_spanish_id: "X1234567L",
        checksums.is_italian_code: "RSSMRA85T10A562S", checksums.is_brazilian_id: "11144477735",
        checksums.is_french_id: "255081416802538", checksums.is_polish_id: "44051401359",
        checksums.is_swedish_id: "8112189876", checksums.is_finnish_id: "131052-308T",
        checksums.is_korean_id: "8501011234566", checksums.is_indian_id: "234123412346",
    }  # fmt: skip
    for check, number in right.items():
        assert check(number), check.__name__
        place = next(p for p in range(len(number) - 2, 0, -1) if number[p].isdigit())
        wrong = number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1 :]
        assert not check(wrong), check.__name__


def test_extras_are_looked_into_and_rewritten() -> None:
    call = {
        "type": "function",
        "function": {"name": "mail", "arguments": {"to": "anna.lee@acme.io", "name": "bob@acme.io"}},
    }
    extra = {
        "turns": {"1": {"reasoning": "She is bob@acme.io.", "tool_calls": [call]}},
        "tools": [{"type": "function", "function": {"name": "mail", "description": "as bob@acme.io"}}],
        "answers": [{"role": "rejected", "messages": [{"role": "assistant", "content": "Ask bob@acme.io."}]}],
    }
    rows = [row("Hello", "there"), row("Mail anna.lee@acme.io", "", extra=extra), row("Hello", "again")]
    found = judged(rows, "data.filters.pii.email=redact")
    plain = found.part.to_pylist()
    assert [turn["content"] for turn in plain[1]["turns"]] == ["Mail [EMAIL]", ""]
    clean = json.loads(plain[1]["extra"])
    assert clean["turns"]["1"]["reasoning"] == "She is [EMAIL]."
    made = clean["turns"]["1"]["tool_calls"][0]["function"]
    assert made == {"name": "mail", "arguments": {"to": "[EMAIL]", "name": "[EMAIL]"}}
    assert clean["tools"][0]["function"]["description"] == "as [EMAIL]"
    assert clean["answers"][0]["messages"][0]["content"] == "Ask [EMAIL]."
    assert plain[1]["key"] == keys_of([1, 2], ["Mail [EMAIL]", ""], clean)[0]
    assert [plain[0], plain[2]] == [part_of(rows).to_pylist()[n] for n in (0, 2)]
    assert found.part.schema.equals(PART)
    assert found.flags["count"].to_pylist() == [6]


def test_the_ledger_can_say_what_was_redacted() -> None:
    rows = [row("Hello", "there"), row("a@acme.io b@acme.io", "8.8.8.8\x07"), row("a@acme.io", "again")]
    found = judged(rows, "data.filters.pii={email: redact, ip: flag}", "data.filters.control_characters=remove")
    assert redactions(found.flags) == {1: "control_characters, email x 2", 2: "email"}


EVERYTHING = (
    "data.filters.where=[characters > 0]", "data.filters.residue={}", "data.filters.refusals={}", "data.filters.repetition={}",
    "data.filters.pii={email: redact, card: drop}", "data.filters.control_characters=remove", "data.quality=heuristics",
)  # fmt: skip


def test_empty_parts_bad_rows_and_slices_of_a_part_are_judged_alike() -> None:
    spec = recipe(*EVERYTHING)
    bad = {**row(problem={"code": "DAT-010"}), "turns": None, "characters": 0, "key": None}
    rows = [
        bad,
        row("Mail to anna@acme.io", "A\x07 B"),
        row(("text", "=" * 300)),
        bad,
        row("Hello?", ANSWER),
        row("no answer"),
    ]
    whole = judge(part_of(rows), spec, keys_of)
    for start, length in ((0, 0), (0, 1), (1, 3), (3, 1), (2, 4)):
        for part in (part_of(rows).slice(start, length), part_of(rows[start : start + length], first=start)):
            found = judge(part, spec, keys_of)
            assert found.measured.schema.equals(whole.measured.schema)
            assert str(found.measured.to_pylist()) == str(whole.measured.slice(start, length).to_pylist())
            assert found.part.to_pylist() == whole.part.slice(start, length).to_pylist()
            inside = [verdict for verdict in whole.verdicts.to_pylist() if start <= verdict["row"] < start + length]
            assert found.verdicts.to_pylist() == inside
    assert gone(whole) == {1: "too_short", 2: "longest_run", 5: "too_short"}


# --------------------------------------------------------------------------------------------------- real rows


def test_real_rows_lose_little_and_what_goes_deserves_it(test_data: Path) -> None:
    part = part_of_files(
        test_data / "data" / name
        for name in (
            "instruct/llamafactory/alpaca_en_demo.json",
            "instruct/llamafactory/alpaca_zh_demo.json",
            "chat/v1_sft_demo.jsonl",
        )
    )
    pii = "{email: redact, phone: redact, iban: redact, card: redact, ip: redact, national_id: redact}"
    spec = recipe("data.filters.residue={}", "data.filters.refusals={}", "data.filters.repetition={}", f"data.filters.pii={pii}",
                  "data.filters.control_characters=remove", "data.quality=heuristics")  # fmt: skip
    found = judge(part, spec, keys_of)
    lost = {rule: told["dropped"] for rule, told in found.facts["rules"].items() if told["dropped"]}
    assert 0 < sum(count for rule, count in lost.items() if not rule.startswith("too_")) < 0.05 * part.num_rows, lost
    assert {"residue", "refusal"} <= set(lost)
    for verdict in found.verdicts.to_pylist():
        if verdict["rule"] in ("residue", "refusal"):
            assert verdict["detail"]
    texts = texts_of(part)
    contents = texts.contents.to_pylist()
    asked = texts.of(np.array([bool(text) for text in contents]))
    measured = repetition_of(asked, 5)
    for place in range(0, len(asked.contents), 50):
        assert measured.ngrams[place] == pytest.approx(slow_repetition(asked.contents[place].as_py(), 5)[0])


def test_a_damaged_answer_scores_lower_than_the_real_one(test_data: Path) -> None:
    path = test_data / "data/instruct/llamafactory/alpaca_en_demo.json"
    real = [turns for turns in part_of_files([path])["turns"].to_pylist() if len(turns[-1]["content"]) > 80][:300]

    def scores(damage: Any) -> np.ndarray:
        rows = [row(turns[0]["content"], damage(turns[-1]["content"])) for turns in real]
        return judged(rows, "data.quality=heuristics").measured["quality"].to_numpy()

    whole = scores(lambda text: text)
    assert whole.mean() > 0.85
    for damage in (
        lambda text: text[: len(text) // 2].rstrip(" .!?"),  # cut off
        lambda text: text[:40] + " and so on and on" * 20,  # a loop
        lambda text: text[:40] + " It is indeed so, and so it will be." * 20,
        lambda text: "As an AI language model, I think: " + text,
        lambda text: re.sub(r"[a-z]", "#", text),
    ):
        assert (scores(damage) < whole).mean() > 0.9

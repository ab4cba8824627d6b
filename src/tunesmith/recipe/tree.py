"""What can be asked: one typed, frozen tree. Every key has a type, a default, a unit, a line of doc, an owner and a reader.

A key that nothing reads is a lie to the user, so each one also names `other`: another valid value whose effect a test
observes (tests/contract/test_recipe_owners.py).
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

# Metrics of generated answers; a test compares this with scoring.metrics, which this light package may not import.
ANSWER_METRICS = ("exact_match", "token_f1", "rouge_l", "json_validity")
Role = Literal["system", "user", "assistant", "tool"]
ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def key(default: Any = ..., doc: str = "", *, owner: str, unit: str = "", other: Any = None, **limits: Any) -> Any:
    """A recipe key: `owner` is the module that reads it, `other` a value whose effect a test observes."""
    extra = {"owner": owner, "unit": unit, "other": other}
    if callable(default) and not isinstance(default, type(...)):
        return Field(default_factory=default, description=doc, json_schema_extra=extra, **limits)
    return Field(default, description=doc, json_schema_extra=extra, **limits)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False, protected_namespaces=())


# ---------------------------------------------------------------------------------------------------------- model


class NoQuantisation(Section):
    """The base in the number format of training."""

    type: Literal["none"] = "none"


class Nf4(Section):
    """4-bit NormalFloat (QLoRA): 4.13 bits a weight, 4.5 without double quantisation."""

    type: Literal["nf4"] = "nf4"
    double_quantisation: bool = key(
        True,
        "The scales of the 4-bit blocks are quantised as well: 0.37 bits a weight less.",
        owner="modeling.quantise",
        other=False,
    )


class Int8(Section):
    """8 bits a weight and one scale for each row; multiplied in the number format of training."""

    type: Literal["int8"] = "int8"


Quantisation = NoQuantisation | Nf4 | Int8


class Model(Section):
    base: str = key(
        "builtin:tunesmith-tiny",
        "The model to start from: a folder, owner/name on the hub, or builtin:tunesmith-tiny.",
        owner="hub",
        other="./my-model",
    )
    revision: str | None = key(
        None, "Hub revision (commit, tag or branch); resolved to a commit and recorded.", owner="hub", other="main"
    )
    template: str = key(
        "auto",
        "Chat template: auto (the model's own), chatml, instruction (### Instruction / ### Input / ### Response), plain, or a .jinja file.",
        owner="text.templates",
        other="chatml",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key(
        "auto",
        "Number format of training: auto takes bf16 where the hardware has it, else fp32.",
        owner="modeling.load",
        other="bf16",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = key(
        "auto",
        "Attention implementation; auto times those that can serve, once per machine, before it trains.",
        owner="modeling.load",
        other="eager",
    )
    quantisation: Annotated[Quantisation, Field(discriminator="type")] = key(
        NoQuantisation,
        "How the frozen base is held in memory while an adapter trains (QLoRA): none, nf4 or int8.",
        owner="modeling.quantise",
    )


# -------------------------------------------------------------------------------------------------------- adapter


class Lora(Section):
    type: Literal["lora"] = "lora"
    rank: int = key(16, "Rank of the adapter matrices.", owner="modeling.adapters", other=8, ge=1, le=1024)
    alpha: float = key(
        32.0, "Scale: the update is multiplied by alpha / rank.", owner="modeling.adapters", other=16.0, gt=0
    )
    dropout: float = key(
        0.0,
        "Dropout before the adapter; drawn from (seed, step, example, module, position).",
        owner="modeling.adapters",
        other=0.1,
        ge=0,
        lt=1,
    )
    targets: tuple[str, ...] = key(
        ALL_PROJECTIONS,
        "Module names that get an adapter; the default is all seven projections.",
        owner="modeling.adapters",
        other=("q_proj", "v_proj"),
        min_length=1,
    )


class Full(Section):
    type: Literal["full"] = "full"


Adapter = Annotated[Lora | Full, Field(discriminator="type")]


# ----------------------------------------------------------------------------------------------------------- data


# What a row's columns may be called for us.
FieldName = Literal[
    "instruction", "input", "output", "prompt", "completion", "system", "history", "messages", "conversations", "text",
    "tools", "chosen", "rejected", "label", "answers", "scores",
]  # fmt: skip


class Source(Section):
    path: str = key(
        doc="A file, a folder or a glob of .jsonl .json .csv .tsv .txt .parquet .arrow (also .gz .zst .bz2); - reads standard input; hf://datasets/owner/name, s3://, gs://, https:// and the URL of a database are fetched.",
        owner="stages.prepare.reading.files",
        other="other.jsonl",
    )
    split: Literal["auto", "train", "validation", "test"] = key(
        "auto", "Where its rows go; auto splits them by data.split.", owner="stages.prepare.sets.select", other="test"
    )
    name: str | None = key(
        None,
        "Name shown in the ledger and, for test rows, in the scores; default: the file's stem.",
        owner="stages.prepare.sets.select",
        other="holdout",
    )
    format: Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "text", "chosen"] = key(
        "auto",
        "Row format; auto recognises it from the keys of each row. chosen: of preference pairs the chosen answers, of ranked ones the best scored.",
        owner="text.formats",
        other="text",
    )
    fields: dict[FieldName, str] = key(
        dict,
        "Field mapping where the names are your own: {prompt: your column, completion: your column}; a path leads inwards (answers.0.text).",
        owner="text.formats",
        other={"prompt": "question", "completion": "answer"},
    )
    limit: int | None = key(
        None,
        "At most so many rows of it are used, chosen by hash, so that added rows replace few.",
        owner="stages.prepare.sets.mixture",
        unit="rows",
        other=20,
        ge=1,
    )
    repeat: float = key(
        1.0,
        "How often each of its training rows is seen in an epoch: 2.5 takes every row twice and half of them once more, 0.5 half of them.",
        owner="stages.prepare.sets.mixture",
        other=2.0,
        gt=0,
        le=1000,
    )
    weight: float = key(
        1.0,
        "Weight of its training rows in the mixture: the share of a source is weight * rows ^ (1 / data.mixture.temperature) over their sum.",
        owner="stages.prepare.sets.mixture",
        other=3.0,
        gt=0,
    )
    at: str | None = key(
        None,
        "Path to the list of rows in a JSON document, keys with dots between; needed where it holds several lists of objects.",
        owner="stages.prepare.reading.documents",
        other="data.rows",
    )
    columns: tuple[str, ...] = key(
        (),
        "Columns to read, all where empty: leaves out what is not wanted, such as images beside a text.",
        owner="stages.prepare.reading.reader",
        other=("prompt", "completion"),
    )
    query: str | None = key(
        None,
        "SQL whose result are the rows; for a path that is the URL of a database (sqlite:///rows.db).",
        owner="stages.prepare.reading.fetch",
        other="SELECT prompt, completion FROM rows",
    )


class LengthFilter(Section):
    min_characters: int = key(
        50,
        "Rows with fewer characters over all turns are dropped.",
        owner="stages.prepare.cleaning",
        unit="characters",
        other=10,
        ge=0,
    )
    max_characters: int = key(
        10_000,
        "Rows with more characters over all turns are dropped.",
        owner="stages.prepare.cleaning",
        unit="characters",
        other=500,
        ge=1,
    )


class QualityFilter(Section):
    column: str = key(
        "quality_score",
        "Numeric column to judge by; rows without it are kept.",
        owner="stages.prepare.cleaning",
        other="score",
    )
    above: float | None = key(
        0.7, "Rows whose value is not above this are dropped.", owner="stages.prepare.cleaning", other=0.5
    )
    below: float | None = key(
        None, "Rows whose value is not below this are dropped.", owner="stages.prepare.cleaning", other=0.8
    )


class ColumnFilter(Section):
    """A further numeric column, with at least one of the two bounds."""

    column: str = key(
        doc="Numeric column to judge by; rows without it are kept.", owner="stages.prepare.cleaning", other="score"
    )
    above: float | None = key(
        None, "Rows whose value is not above this are dropped.", owner="stages.prepare.cleaning", other=0.5
    )
    below: float | None = key(
        None, "Rows whose value is not below this are dropped.", owner="stages.prepare.cleaning", other=0.8
    )


class LanguageFilter(Section):
    """Language by py3langid. A row goes when the languages to keep are together less probable than `min_probability`."""

    keep: tuple[str, ...] = key(
        doc="Languages to keep, by their ISO 639-1 codes.",
        owner="stages.prepare.cleaning",
        other=("de",),
        min_length=1,
    )
    min_probability: float = key(
        0.5,
        "Least probability of the languages to keep, taken together.",
        owner="stages.prepare.cleaning",
        unit="share",
        other=1.0,
        ge=0,
        le=1,
    )
    min_letters: int = key(
        40,
        "Rows with fewer letters are undecided: kept and counted.",
        owner="stages.prepare.cleaning",
        unit="letters",
        other=400,
        ge=1,
    )
    of: Literal["all", "answer"] = key(
        "all",
        "Which text is looked at: all turns, or the answer alone.",
        owner="stages.prepare.cleaning",
        other="answer",
    )


class RepetitionFilter(Section):
    """How much an answer (or a plain text) repeats itself."""

    ngram: int = key(
        5,
        "Words in a row that count as one n-gram; a CJK character counts as a word.",
        owner="stages.prepare.cleaning",
        unit="words",
        other=2,
        ge=1,
        le=20,
    )
    max_repeated_ngrams: float = key(
        0.4,
        "Rows are dropped where a larger share of n-grams occurred before in the same answer.",
        owner="stages.prepare.cleaning",
        unit="share",
        other=0.99,
        ge=0,
        le=1,
    )
    max_repeated_lines: float = key(
        0.5,
        "Rows are dropped where a larger share of the text stands in lines that occurred before.",
        owner="stages.prepare.cleaning",
        unit="share",
        other=0.99,
        ge=0,
        le=1,
    )
    max_run: int = key(
        100,
        "Rows are dropped where one character other than a blank follows itself more often.",
        owner="stages.prepare.cleaning",
        unit="characters",
        other=3,
        ge=1,
    )


class PhraseFilter(Section):
    action: Literal["flag", "drop"] = key(
        "drop", "flag counts such rows; drop leaves them out.", owner="stages.prepare.cleaning", other="flag"
    )
    phrases: tuple[str, ...] = key(
        (),
        "Your own phrases beside the known ones; letter case aside.",
        owner="stages.prepare.cleaning",
        other=("on its way",),
    )


FoundAction = Literal["off", "flag", "redact", "drop"]


class Secrets(Section):
    """Known shapes of credentials, in any turn: off, flag (counted), redact (replaced before tokenising), drop."""

    api_keys: FoundAction = key(
        "flag",
        "Keys of known services (AWS, GitHub, OpenAI, Anthropic, Google, Slack, Stripe ...) and passwords in URLs.",
        owner="stages.prepare.cleaning",
        other="drop",
    )
    private_keys: FoundAction = key("flag", "Private keys in PEM form.", owner="stages.prepare.cleaning", other="drop")
    tokens: FoundAction = key("flag", "JSON web tokens.", owner="stages.prepare.cleaning", other="drop")


class Personal(Section):
    """Personal data by pattern and checksum, in any turn: off, flag (counted), redact (replaced before tokenising), drop."""

    email: FoundAction = key("off", "E-mail addresses.", owner="stages.prepare.cleaning", other="drop")
    phone: FoundAction = key("off", "Phone numbers.", owner="stages.prepare.cleaning", other="drop")
    iban: FoundAction = key("off", "Bank accounts (IBAN, mod 97).", owner="stages.prepare.cleaning", other="drop")
    card: FoundAction = key("off", "Payment cards (issuer and Luhn).", owner="stages.prepare.cleaning", other="drop")
    ip: FoundAction = key("off", "Public IP addresses.", owner="stages.prepare.cleaning", other="drop")
    national_id: FoundAction = key(
        "off",
        "National identity numbers that carry a check digit.",
        owner="stages.prepare.cleaning",
        other="drop",
    )
    model: str | None = key(
        None,
        "Folder of a token classification model (transformers) that marks personal data.",
        owner="stages.prepare.cleaning",
        other="TAGGER",
    )
    model_action: Literal["flag", "redact", "drop"] = key(
        "redact", "What to do with what the model marks.", owner="stages.prepare.cleaning", other="drop"
    )
    model_labels: tuple[str, ...] = key(
        (),
        "Labels of the model that count, without B- and I-; empty: all but O.",
        owner="stages.prepare.cleaning",
        other=("NOBODY",),
    )
    model_probability: float = key(
        0.5,
        "Least probability of a mark.",
        owner="stages.prepare.cleaning",
        unit="share",
        other=1.0,
        ge=0,
        le=1,
    )


class Filters(Section):
    """A filter written in the recipe is a decision; one left at its default may not drop more than a few rows unasked."""

    length: LengthFilter | None = key(
        LengthFilter, "Length over all turns; null switches it off.", owner="stages.prepare.cleaning", other=None
    )
    quality: QualityFilter | None = key(
        QualityFilter,
        "Quality score, where that column exists; null switches it off.",
        owner="stages.prepare.cleaning",
        other=None,
    )
    columns: tuple[ColumnFilter, ...] = key(
        (),
        "Further numeric columns to judge by.",
        owner="stages.prepare.cleaning",
        other=({"column": "score", "above": 0.5},),
    )
    where: tuple[str, ...] = key(
        (),
        "Daft SQL expressions over prompt, answer, text, characters, turns, source, format and the rows' other columns; a row stays where all are true.",
        owner="stages.prepare.reading.frames",
        other=("characters < 100",),
    )
    control_characters: Literal["off", "flag", "remove", "drop"] = key(
        "flag",
        "C0 controls but tab and line ends, DEL, and U+FFFD: flag counts them, remove takes them out, drop leaves such rows out.",
        owner="stages.prepare.cleaning",
        other="drop",
    )
    language: LanguageFilter | None = key(
        None,
        "Language; null switches it off. Needs py3langid.",
        owner="stages.prepare.cleaning",
        other={"keep": ["de"]},
    )
    residue: PhraseFilter | None = key(
        None,
        "Answers with leftovers of other templates, of assistants that speak of themselves, or an empty <think>; null switches it off.",
        owner="stages.prepare.cleaning",
        other={},
    )
    refusals: PhraseFilter | None = key(
        None, "Answers that begin with a refusal; null switches it off.", owner="stages.prepare.cleaning", other={}
    )
    repetition: RepetitionFilter | None = key(
        None, "Answers that repeat themselves; null switches it off.", owner="stages.prepare.cleaning", other={}
    )
    secrets: Secrets = key(Secrets, "Credentials in the rows.", owner="stages.prepare.cleaning")
    pii: Personal = key(Personal, "Personal data in the rows.", owner="stages.prepare.cleaning")
    accept_drop_share: float = key(
        0.05,
        "A filter left at its default that would drop a larger share than this stops the run with the counts.",
        owner="stages.prepare.cleaning",
        unit="share",
        other=1.0,
        ge=0,
        le=1,
    )


class NoScore(Section):
    """Rows get no score of ours."""

    type: Literal["none"] = "none"


class Heuristics(Section):
    """0 to 1 from the answer's length, repetition, letters, ending and leftovers. The higher the better."""

    type: Literal["heuristics"] = "heuristics"
    above: float | None = key(
        None, "Rows whose score is not above this are dropped.", owner="stages.prepare.cleaning", other=0.9
    )
    below: float | None = key(
        None, "Rows whose score is not below this are dropped.", owner="stages.prepare.cleaning", other=0.5
    )
    keep: float | None = key(
        None,
        "Keep this share of the training rows, the best ones.",
        owner="stages.prepare.cleaning",
        unit="share",
        other=0.5,
        gt=0,
        le=1,
    )


class AnswerPerplexity(Heuristics):
    """Perplexity of the answer after its prompt, by the recipe's base model. The lower the better."""

    type: Literal["perplexity"] = "perplexity"  # type: ignore[assignment]


class Difficulty(Heuristics):
    """Instruction-following difficulty: loss of the answer with its prompt / without it. The higher the more is to be learned;
    from 1 on the prompt does not help, so `below: 1` is usual."""

    type: Literal["difficulty"] = "difficulty"  # type: ignore[assignment]


Scoring = NoScore | Heuristics | AnswerPerplexity | Difficulty


class Split(Section):
    validation: float = key(
        0.05,
        "Share of the rows of `split: auto` sources held out for validation.",
        owner="stages.prepare.sets.select",
        unit="share",
        other=0.2,
        ge=0,
        lt=1,
    )
    test: float = key(
        0.05,
        "Share of the rows of `split: auto` sources held out for the test.",
        owner="stages.prepare.sets.select",
        unit="share",
        other=0.2,
        ge=0,
        lt=1,
    )
    stratify: str | None = key(
        None,
        "Holds the same share of every kind of row out: answer (equal answers are of a kind), or a column of the rows.",
        owner="stages.prepare.sets.splits",
        other="answer",
    )


# What becomes of rows with the same prompt and different answers, where duplicates are looked for.
def _conflicts() -> Any:
    return key(
        "report",
        "Same prompt, different answers: report counts and shows them, keep_best keeps the best scored (else the first), drop leaves all of them out.",
        owner="stages.prepare.sets.duplicates",
        other="drop",
    )


Conflicts = Literal["report", "keep_best", "drop"]


class KeepDuplicates(Section):
    type: Literal["none"] = "none"


class ExactDuplicates(Section):
    """One of several equal rows stays: the best scored, else the first."""

    type: Literal["exact"] = "exact"
    conflicts: Conflicts = _conflicts()


class NearDuplicates(Section):
    """One of several equal or alike rows stays: MinHash finds pairs, their Jaccard similarity decides, and what hangs together is one group."""

    type: Literal["near"] = "near"
    on: Literal["both", "prompt", "answer"] = key(
        "both",
        "Text that is compared: all turns, those before the last answer, or that answer.",
        owner="stages.prepare.sets.signatures",
        other="prompt",
    )
    threshold: float = key(
        0.8,
        "Share of common runs of words (Jaccard) from which two rows are duplicates.",
        owner="stages.prepare.sets.signatures",
        unit="share",
        other=0.5,
        gt=0.1,
        le=1,
    )
    length: int = key(
        5, "Words, or characters, of a run.", owner="stages.prepare.sets.signatures", other=2, ge=1, le=50
    )
    unit: Literal["words", "characters"] = key(
        "words",
        "Runs of words, or of characters: these find more in texts of a few words.",
        owner="stages.prepare.sets.signatures",
        other="characters",
    )
    conflicts: Conflicts = _conflicts()


Duplicates = Annotated[KeepDuplicates | ExactDuplicates | NearDuplicates, Field(discriminator="type")]


class KeepLeaks(Section):
    type: Literal["keep"] = "keep"


class DropLeaks(Section):
    """Training rows that ask what is held out are left out, and alike rows stay on one side of a split."""

    type: Literal["drop"] = "drop"
    near: float | None = key(
        0.8,
        "Share of common runs of words (Jaccard) of two prompts from which one gives the other away; null: only equal prompts do.",
        owner="stages.prepare.sets.signatures",
        unit="share",
        other=None,
        gt=0.1,
        le=1,
    )
    length: int = key(5, "Words of a run.", owner="stages.prepare.sets.signatures", other=2, ge=1, le=50)
    overlap: float | None = key(
        None,
        "A training row goes that holds this share of a held-out prompt's runs of overlap_words words, wherever they stand in it.",
        owner="stages.prepare.sets.leaks",
        unit="share",
        other=0.5,
        gt=0,
        le=1,
    )
    overlap_words: int = key(13, "Words of such a run.", owner="stages.prepare.sets.signatures", other=6, ge=3, le=50)
    against: tuple[str, ...] = key(
        (),
        "Files, folders or globs with rows that must not be trained on, such as a public test set; they are not evaluated.",
        owner="stages.prepare.sets.against",
        other=("other.jsonl",),
    )


Leaks = Annotated[DropLeaks | KeepLeaks, Field(discriminator="type")]


class Mixture(Section):
    """How much of each source an epoch holds. At its defaults every row once."""

    temperature: Annotated[float, Field(ge=1)] | Literal["infinite"] = key(
        1.0,
        "1 leaves sources as large as they are, larger values draw them together, infinite goes by their weights alone.",
        owner="stages.prepare.sets.mixture",
        other="infinite",
    )
    rows: Literal["same", "fewest", "most"] | Annotated[int, Field(ge=1)] = key(
        "same",
        "Training rows of an epoch once mixed: same as before, fewest (no row twice), most (no row left out), or a number.",
        owner="stages.prepare.sets.mixture",
        other=30,
    )


class Data(Section):
    sources: tuple[Source, ...] = key(
        doc="Where the rows are: paths, or {path, split, name, format, fields}.",
        owner="stages.prepare.reading.reader",
        other=({"path": "b.jsonl"},),
        min_length=1,
    )
    on_bad_row: Literal["stop", "quarantine"] = key(
        "stop",
        "stop: list all problems, train nothing; quarantine: set bad rows apart and go on.",
        owner="stages.prepare.run",
        other="quarantine",
    )
    max_bad_share: float = key(
        0.01,
        "With quarantine: stop all the same above this share of bad rows.",
        owner="stages.prepare.run",
        unit="share",
        other=0.5,
        ge=0,
        le=1,
    )
    filters: Filters = key(Filters, "What is dropped before training.", owner="stages.prepare.cleaning")
    quality: Annotated[Scoring, Field(discriminator="type")] = key(
        NoScore,
        "A score for rows that bring none: none, heuristics, perplexity or difficulty; without a bound it is only measured.",
        owner="stages.prepare.cleaning",
    )
    deduplicate: Duplicates = key(
        ExactDuplicates,
        "exact keeps one of several equal rows (the best scored, else the first), near one of several alike ones too, none all.",
        owner="stages.prepare.sets.duplicates",
        other="none",
    )
    leaks: Leaks = key(
        DropLeaks,
        "drop takes training rows out that ask what a validation or test row asks; keep leaves them in.",
        owner="stages.prepare.sets.leaks",
        other="keep",
    )
    mixture: Mixture = key(Mixture, "How much of each source an epoch holds.", owner="stages.prepare.sets.mixture")
    split: Split = key(
        Split, "Held-out shares of sources that do not say where they belong.", owner="stages.prepare.sets.select"
    )
    max_tokens: int = key(
        1024,
        "Longest sequence, prompt and answer together.",
        owner="stages.prepare.encoding.tokens",
        unit="tokens",
        other=64,
        ge=8,
    )
    too_long: Literal["drop", "truncate", "split"] = key(
        "drop",
        "drop: leave over-long rows out; truncate: cut the end; split: between exchanges, texts into windows; all counted.",
        owner="stages.prepare.encoding.by_tokens",
        other="truncate",
    )
    learn: Literal["all", "last"] | Annotated[tuple[Role, ...], Field(min_length=1)] = key(
        "all",
        "Which turns are learned: all of the assistant's, its last one only, or those of the roles listed; a turn's own "
        "learn or weight goes first.",
        owner="text.policies",
        other="last",
    )


class LocalCompute(Section):
    """Rows are read and encoded on this machine."""

    type: Literal["local"] = "local"
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto", "Processes that read; auto: one per core.", owner="stages.prepare.spread", unit="processes", other=2
    )


class RayCompute(Section):
    """Rows are read and encoded by a Ray cluster whose nodes all see the data and the workspace under the same paths."""

    type: Literal["ray"] = "ray"
    address: str | None = key(
        None,
        "Address of the cluster; null: RAY_ADDRESS, else one on this machine.",
        owner="stages.prepare.cluster",
        other="ray://head:10001",
    )


# ---------------------------------------------------------------------------------------------------------- train


class AdamW(Section):
    type: Literal["adamw"] = "adamw"
    beta1: float = key(0.9, "Decay of the mean of gradients.", owner="stages.train.optimizer", other=0.8, ge=0, lt=1)
    beta2: float = key(
        0.999, "Decay of the mean of squared gradients.", owner="stages.train.optimizer", other=0.95, ge=0, lt=1
    )
    epsilon: float = key(1e-8, "Added to the denominator.", owner="stages.train.optimizer", other=1e-6, gt=0)
    weight_decay: float = key(
        0.0, "Decoupled weight decay; not on biases and norms.", owner="stages.train.optimizer", other=0.1, ge=0
    )


class AdamW8bit(AdamW):
    """AdamW whose averages take one byte each (bitsandbytes), in blocks of 256 with a scale; small tensors keep fp32."""

    type: Literal["adamw_8bit"] = "adamw_8bit"  # type: ignore[assignment]


class PagedAdamW8bit(AdamW8bit):
    """The same, its averages in memory that CUDA moves to the CPU when the GPU is full."""

    type: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"  # type: ignore[assignment]


class Lion(Section):
    """The sign of an average of gradients (bitsandbytes). Rates three to ten times lower than AdamW's are usual."""

    type: Literal["lion"] = "lion"
    beta1: float = key(
        0.9, "Share of the average in the sign that is taken.", owner="stages.train.optimizer", other=0.8, ge=0, lt=1
    )
    beta2: float = key(
        0.99, "Decay of the average of gradients.", owner="stages.train.optimizer", other=0.95, ge=0, lt=1
    )
    weight_decay: float = key(
        0.0, "Decoupled weight decay; not on biases and norms.", owner="stages.train.optimizer", other=0.1, ge=0
    )


class Lion8bit(Lion):
    """Lion whose average takes one byte."""

    type: Literal["lion_8bit"] = "lion_8bit"  # type: ignore[assignment]


class Adafactor(Section):
    """Squared gradients kept as one row and one column per matrix; its rate is a share of the weights' size."""

    type: Literal["adafactor"] = "adafactor"
    beta2_decay: float = key(
        -0.8, "Exponent of the step in the decay of the squares.", owner="stages.train.optimizer", other=-0.5, le=0
    )
    weight_decay: float = key(
        0.0, "Decoupled weight decay; not on biases and norms.", owner="stages.train.optimizer", other=0.1, ge=0
    )


class Sgd(Section):
    type: Literal["sgd"] = "sgd"
    momentum: float = key(
        0.0, "Share of the last update that is kept.", owner="stages.train.optimizer", other=0.9, ge=0, lt=1
    )
    weight_decay: float = key(
        0.0, "L2 penalty; not on biases and norms.", owner="stages.train.optimizer", other=0.1, ge=0
    )


Optimizer = AdamW | AdamW8bit | PagedAdamW8bit | Lion | Lion8bit | Adafactor | Sgd


# A number up to 1 is a share of the steps, from 2 on a number of steps: one key, and no question which of two counts.
ShareOrSteps = Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=2)]


def _warmup() -> Any:
    return key(
        0.05,
        "Steps with a rising rate: up to 1 a share of all steps, from 2 on a number of steps.",
        owner="stages.train.schedule",
        unit="share or steps",
        other=0.2,
    )


def _final() -> Any:
    return key(
        0.0,
        "Rate at the end as a share of the peak; of plateau: the lowest one.",
        owner="stages.train.schedule",
        unit="share",
        other=0.1,
        ge=0,
        le=1,
    )


class Cosine(Section):
    type: Literal["cosine"] = "cosine"
    warmup: ShareOrSteps = _warmup()
    final: float = _final()


class Linear(Section):
    type: Literal["linear"] = "linear"
    warmup: ShareOrSteps = _warmup()
    final: float = _final()


class Constant(Section):
    type: Literal["constant"] = "constant"
    warmup: ShareOrSteps = _warmup()


class Wsd(Section):
    """Warm-up, stable, decay: the peak rate until the last part, so that a longer run can begin before it."""

    type: Literal["wsd"] = "wsd"
    warmup: ShareOrSteps = _warmup()
    decay: ShareOrSteps = key(
        0.2,
        "Last steps, over which the rate falls: up to 1 a share of all steps, from 2 on a number of steps.",
        owner="stages.train.schedule",
        unit="share or steps",
        other=0.5,
    )
    shape: Literal["linear", "cosine", "1-sqrt"] = key(
        "linear", "How it falls.", owner="stages.train.schedule", other="1-sqrt"
    )
    final: float = _final()


class InverseSqrt(Section):
    type: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: ShareOrSteps = _warmup()
    timescale: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto",
        "Steps after which the rate has fallen to 71 %; auto: as many as the warm-up has, 10,000 without one.",
        owner="stages.train.schedule",
        unit="steps",
        other=3,
    )


class Plateau(Section):
    """The peak rate until train.best_metric no longer gets better, then less of it."""

    type: Literal["plateau"] = "plateau"
    warmup: ShareOrSteps = _warmup()
    factor: float = key(
        0.5, "What the rate is multiplied by.", owner="stages.train.schedule", unit="share", other=0.1, gt=0, lt=1
    )
    patience: int = key(
        2,
        "Validations without a gain before it falls.",
        owner="stages.train.schedule",
        unit="evaluations",
        other=0,
        ge=0,
    )
    min_gain: float = key(
        1e-4,
        "A gain counts when it is larger than this share of the best value.",
        owner="stages.train.schedule",
        unit="share",
        other=0.5,
        ge=0,
        lt=1,
    )
    cooldown: int = key(
        0,
        "Validations after a fall that are not counted.",
        owner="stages.train.schedule",
        unit="evaluations",
        other=1,
        ge=0,
    )
    final: float = _final()


Schedule = Annotated[
    Cosine | Linear | Constant | Wsd | InverseSqrt | Plateau,
    Field(discriminator="type"),
]


class Validation(Section):
    """What is measured at each validation besides loss and perplexity, which are always told."""

    metrics: tuple[str, ...] = key(
        (),
        "Metrics of generated answers to tell: exact_match, token_f1, rouge_l, json_validity, or path/to/file.py:function; "
        "those that train.best_metric and train.early_stopping.metric name come by themselves.",
        owner="stages.train.validation",
        other=("exact_match",),
    )
    max_items: int = key(
        64,
        "Validation items that are answered for such a metric (first by hash order).",
        owner="stages.train.validation",
        unit="items",
        other=2,
        ge=1,
    )
    max_new_tokens: int = key(64, "Longest such answer.", owner="stages.train.validation", unit="tokens", other=4, ge=1)
    batch_size: int = key(
        16, "Prompts answered together.", owner="stages.train.validation", unit="prompts", other=4, ge=1
    )


class EarlyStopping(Section):
    metric: str = key(
        "auto",
        "What has to get better: loss, perplexity, or a metric as in train.validation.metrics; auto takes train.best_metric.",
        owner="stages.train.guards",
        other="perplexity",
    )
    patience: int = key(
        3,
        "Evaluations without improvement before training stops.",
        owner="stages.train.guards",
        unit="evaluations",
        other=1,
        ge=1,
    )
    min_delta: float = key(
        0.0, "A gain not larger than this does not count.", owner="stages.train.guards", other=0.5, ge=0
    )


class AutoEngine(Section):
    """One process trains alone, several as replicas (ddp)."""

    type: Literal["auto"] = "auto"


class Ddp(Section):
    """Each process has the whole model; gradients are summed once per step."""

    type: Literal["ddp"] = "ddp"


class Fsdp(Section):
    """FSDP2: weights, gradients and optimizer state are cut into shards, one per process."""

    type: Literal["fsdp"] = "fsdp"
    reshard_after_forward: bool = key(
        True,
        "true gives a layer's gathered weights back after its forward pass; false keeps them until the backward pass: faster, more memory.",
        owner="stages.train.engines.fsdp",
        other=False,
    )
    cpu_offload: bool = key(
        False,
        "Shards and optimizer live in the memory of the CPU; needs CUDA devices.",
        owner="stages.train.engines.fsdp",
        other=True,
    )


class DeepSpeed(Section):
    """ZeRO by DeepSpeed's own engine: 1 shards optimizer state, 2 gradients as well, 3 weights as well."""

    type: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal["auto", 1, 2, 3] = key(
        "auto",
        "What is sharded: 1 optimizer state, 2 and gradients, 3 and weights; auto takes the file's stage, else 2.",
        owner="stages.train.engines.deepspeed_config",
        other=3,
    )
    offload_optimizer: Literal["auto", "none", "cpu"] = key(
        "auto",
        "Where optimizer state lives; auto takes what the file says, else none; cpu needs CUDA devices.",
        owner="stages.train.engines.deepspeed_config",
        other="cpu",
    )
    offload_parameters: Literal["auto", "none", "cpu"] = key(
        "auto",
        "Where sharded weights live (stage 3); auto takes what the file says, else none; cpu needs CUDA devices.",
        owner="stages.train.engines.deepspeed_config",
        other="cpu",
    )
    config: str | None = key(
        None,
        "A DeepSpeed JSON file of your own; each of its keys is obeyed, overridden with a printed reason, or refused.",
        owner="stages.train.engines.deepspeed_config",
        other="ds.json",
    )


class Train(Section):
    epochs: float = key(
        1.0, "Passes over the training rows.", owner="stages.train.batches", unit="epochs", other=2.0, gt=0
    )
    max_steps: int | None = key(
        None,
        "Stop after this many steps, whatever the epochs say.",
        owner="stages.train.batches",
        unit="steps",
        other=3,
        ge=1,
    )
    batch_size: int = key(
        16,
        "Examples per optimizer step, over all processes and micro-batches.",
        owner="stages.train.batches",
        unit="examples",
        other=8,
        ge=1,
    )
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto",
        "Longest examples that go through the model at once; auto lets the plan choose and a probe check.",
        owner="planner",
        unit="examples",
        other=2,
    )
    packing: Literal["auto", "off"] = key(
        "auto",
        "auto lays examples end to end without padding and without seeing each other, where a proof on the model holds; off gives each its own row. The mathematics is the same.",
        owner="modeling.packing",
        other="off",
    )
    learning_rate: float = key(2e-4, "Peak learning rate.", owner="stages.train.optimizer", other=1e-3, gt=0)
    schedule: Schedule = key(Cosine, "How the rate moves.", owner="stages.train.schedule")
    optimizer: Annotated[Optimizer, Field(discriminator="type")] = key(
        AdamW, "The update rule.", owner="stages.train.optimizer"
    )
    max_grad_norm: float | None = key(
        1.0,
        "Gradients are scaled down to this global norm; null: never.",
        owner="stages.train.engines",
        other=0.1,
        gt=0,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = key(
        "auto", "Recompute activations to save memory; auto lets the plan decide.", owner="planner", other="on"
    )
    compile: Literal["off", "regional"] = key(
        "off",
        "regional compiles each decoder layer once (torch.compile): seconds to minutes before step 1, then faster steps.",
        owner="modeling.compile",
        other="regional",
    )
    kernels: Literal["auto", "off", "liger"] = key(
        "auto",
        "Fused kernels for norms, rotations and activations: auto takes Liger's on a GPU where liger_kernel is installed.",
        owner="modeling.kernels",
        other="liger",
    )
    evaluate_every: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto",
        "Steps between validations; auto makes about ten per run.",
        owner="stages.train.run",
        unit="steps",
        other=2,
    )
    save_every: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto",
        "Steps between checkpoints; auto saves after each validation.",
        owner="stages.train.run",
        unit="steps",
        other=2,
    )
    keep_checkpoints: int = key(
        2,
        "Newest verified checkpoints kept, besides the best.",
        owner="stages.train.checkpoint",
        unit="checkpoints",
        other=1,
        ge=1,
    )
    validation: Validation = key(Validation, "What a validation measures.", owner="stages.train.validation")
    keep: Literal["best", "last"] = key(
        "best",
        "Which weights become the result: the best by train.best_metric, or the last.",
        owner="stages.train.run",
        other="last",
    )
    best_metric: str = key(
        "loss",
        "What makes weights the best: loss or perplexity (lower), or a metric of generated answers (higher): exact_match, "
        "token_f1, rouge_l, json_validity, path/to/file.py:function.",
        owner="stages.train.guards",
        other="perplexity",
    )
    early_stopping: EarlyStopping | None = key(
        None, "Stop when validation no longer improves.", owner="stages.train.guards", other={"patience": 1}
    )
    callbacks: tuple[str, ...] = key(
        (),
        "Your own code between two steps, as path/to/file.py:function_or_class (needs --allow-code); it may watch and stop.",
        owner="stages.train.callbacks",
        other=("watch.py:Watch",),
    )
    gradient_noise: Literal["off", "on"] = key(
        "off",
        "Tell the gradient noise scale of steps with at least two micro-batches; holds the gradients once more.",
        owner="stages.train.noise",
        other="on",
    )
    processes: int = key(
        1, "Training processes on this machine (torchrun).", owner="launch", unit="processes", other=2, ge=1
    )
    engine: Annotated[AutoEngine | Ddp | Fsdp | DeepSpeed, Field(discriminator="type")] = key(
        AutoEngine,
        "How several processes share the work: auto (one process alone, several as ddp), ddp, fsdp or deepspeed.",
        owner="stages.train.engines",
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto",
        "CPU threads per process; pinned and recorded, because bits depend on it.",
        owner="stages.train.run",
        unit="threads",
        other=1,
    )


# ------------------------------------------------------------------------------------- evaluate, gate, export, serve


class Evaluate(Section):
    metrics: tuple[str, ...] = key(
        ("exact_match", "token_f1"),
        "exact_match, token_f1, rouge_l, json_validity, perplexity, or your own as path/to/file.py:function (needs --allow-code).",
        owner="scoring.metrics",
        other=("perplexity",),
        min_length=1,
    )
    max_new_tokens: int = key(
        256, "Longest answer that is generated.", owner="scoring.generation", unit="tokens", other=4, ge=1
    )
    batch_size: int = key(32, "Prompts generated together.", owner="scoring.generation", unit="prompts", other=4, ge=1)
    cache: Literal["dynamic", "static"] = key(
        "dynamic",
        "Keys and values while answers are generated: dynamic grows with each token, static has its whole room from the start.",
        owner="scoring.generation",
        other="static",
    )
    split: Literal["test", "validation"] = key(
        "test",
        "Held-out rows that are asked: test (validation where there is no test row), or validation.",
        owner="stages.evaluate.run",
        other="validation",
    )
    max_items: int | None = key(
        None,
        "Evaluate at most this many items of each test part (first by hash order).",
        owner="stages.evaluate.run",
        unit="items",
        other=5,
        ge=1,
    )
    confidence: float = key(
        0.95, "Confidence of the intervals.", owner="scoring.statistics", unit="share", other=0.99, gt=0.5, lt=1
    )


class Gate(Section):
    require: Literal["beat_base", "none"] = key(
        "beat_base",
        "beat_base: the gain over the base must be above zero with its whole interval; none: always ship.",
        owner="stages.evaluate.gate",
        other="none",
    )
    metric: str = key(
        "auto",
        "The metric that decides; auto takes the first of evaluate.metrics.",
        owner="stages.evaluate.gate",
        other="token_f1",
    )
    min_gain: float = key(
        0.0, "The whole interval of the gain must be above this.", owner="stages.evaluate.gate", other=0.5, ge=0
    )


class Export(Section):
    merged: bool = key(
        True, "Write a merged model folder (adapter folded into the base).", owner="stages.export.run", other=False
    )
    adapter: bool = key(True, "Write the adapter alone, in PEFT format.", owner="stages.export.run", other=False)
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = key(
        "auto",
        "Number format of the exported weights; auto keeps that of training.",
        owner="stages.export.run",
        other="bf16",
    )


class Serve(Section):
    host: str = key(
        "127.0.0.1",
        "Address to listen on; anything but loopback needs a token of at least 32 characters.",
        owner="stages.serve.gate",
        other="localhost",
    )
    port: int = key(
        8000,
        "Port of the OpenAI-compatible endpoint; 0 picks a free one.",
        owner="stages.serve.gate",
        other=0,
        ge=0,
        le=65535,
    )
    engine: Literal["auto", "transformers", "vllm"] = key(
        "auto",
        "What computes the answers; auto takes vllm where it is installed and a GPU is there, else transformers.",
        owner="stages.serve.checks",
        other="transformers",
    )
    compile: bool = key(
        False,
        "Compile the model when the server starts; says how long it took and what it gained.",
        owner="stages.serve.compilation",
        other=True,
    )
    quantisation: Literal["none", "nf4", "int8"] = key(
        "none",
        "Hold the served weights in 4 or 8 bits; answers then differ from evaluation's, and the proof says how many.",
        owner="stages.serve.engine",
        other="nf4",
    )
    adapters: dict[str, str] = key(
        dict,
        "Further adapters on the same base: name in requests -> a run, or a folder with adapter_config.json.",
        owner="stages.serve.deployment",
        other={"another": "./adapter"},
    )
    temperature: float = key(
        0.7, "Where a request says nothing; 0 is greedy.", owner="stages.serve.protocol", other=0.0, ge=0, le=2
    )
    top_p: float = key(
        0.95,
        "Where a request says nothing: the smallest set of tokens that together are this probable.",
        owner="stages.serve.protocol",
        unit="share",
        other=0.5,
        gt=0,
        le=1,
    )
    max_new_tokens: int = key(
        512, "Upper bound and default of max_tokens.", owner="stages.serve.limits", unit="tokens", other=16, ge=1
    )
    max_body_bytes: int = key(
        2_000_000, "Largest request body.", owner="stages.serve.limits", unit="bytes", other=1000, ge=100
    )
    queue: int = key(
        64,
        "Requests in flight before the server answers 429.",
        owner="stages.serve.limits",
        unit="requests",
        other=1,
        ge=1,
    )
    parity_items: int = key(
        32,
        "Held-out prompts asked through the server and compared with evaluation.",
        owner="stages.serve.parity",
        unit="items",
        other=4,
        ge=1,
    )


# --------------------------------------------------------------------------------------------------------- trackers


class TensorBoard(Section):
    folder: str | None = key(
        None,
        "Folder of the event files; null: tensorboard/ in the run's folder.",
        owner="tracking.tensorboard",
        other="./events",
    )


def _tracker_name(owner: str) -> Any:
    return key(None, "Name of the run there; null: the run's id.", owner=owner, other="first try")


def _tracker_tags(owner: str) -> Any:
    return key((), "Tags of the run there.", owner=owner, other=("baseline",))


class Wandb(Section):
    project: str = key("tunesmith", "Project the run goes into.", owner="tracking.wandb", other="support")
    entity: str | None = key(
        None, "User or team that owns the project; null: that of the API key.", owner="tracking.wandb", other="team"
    )
    name: str | None = _tracker_name("tracking.wandb")
    tags: tuple[str, ...] = _tracker_tags("tracking.wandb")
    mode: Literal["online", "offline"] = key(
        "online",
        "online needs WANDB_API_KEY; offline writes files in the run's folder for `wandb sync`.",
        owner="tracking.wandb",
        other="offline",
    )
    url: str | None = key(
        None,
        "Server; null: WANDB_BASE_URL, else api.wandb.ai.",
        owner="tracking.wandb",
        other="http://127.0.0.1:8080",
    )


class Mlflow(Section):
    uri: str | None = key(
        None,
        "Tracking server or database; null: MLFLOW_TRACKING_URI, else mlflow.db in the workspace.",
        owner="tracking.mlflow",
        other="http://127.0.0.1:5000",
    )
    experiment: str = key("tunesmith", "Experiment the run goes into.", owner="tracking.mlflow", other="support")
    name: str | None = _tracker_name("tracking.mlflow")
    tags: tuple[str, ...] = _tracker_tags("tracking.mlflow")


class Trackio(Section):
    project: str = key("tunesmith", "Project the run goes into.", owner="tracking.trackio", other="support")
    name: str | None = _tracker_name("tracking.trackio")


class Track(Section):
    """`track: [console, wandb]` is `{to: [console, wandb]}`; a tracker whose section is written needs no place in `to`."""

    to: tuple[Literal["console", "files", "tensorboard", "wandb", "mlflow", "trackio"], ...] = key(
        ("console", "files"),
        "console: lines while it works; files: metrics.csv beside the report; the others: that tracker.",
        owner="tracking",
        other=(),
    )
    tensorboard: TensorBoard = key(TensorBoard, "TensorBoard event files.", owner="tracking.tensorboard")
    wandb: Wandb = key(Wandb, "Weights & Biases.", owner="tracking.wandb")
    mlflow: Mlflow = key(Mlflow, "MLflow.", owner="tracking.mlflow")
    trackio: Trackio = key(Trackio, "Trackio, on this machine.", owner="tracking.trackio")


# ---------------------------------------------------------------------------------------------------------- report


class Report(Section):
    texts: Literal["shown", "masked", "hidden"] = key(
        "shown",
        "Texts of rows, prompts and answers in report.html and report.json: shown, masked (letters as x, digits as 0), or hidden.",
        owner="report.redaction",
        other="hidden",
    )


# ---------------------------------------------------------------------------------------------------------- search


class Tune(Section):
    """What `tunesmith tune` searches. No stage reads it: a trial's recipe is this one with values put in and no search."""

    space: dict[str, Any] = key(
        dict,
        "What is searched: key of the recipe -> {low, high, log} or {choices} or default; left out: the learning rate, and the rank of an adapter.",
        owner="tuning.space",
        other={"train.learning_rate": {"low": 1e-4, "high": 1e-3, "log": True}},
    )
    metric: str = key(
        "validation_loss",
        "What a trial is judged by: validation_loss, or one of evaluate.metrics, asked on validation rows.",
        owner="tuning.objective",
        other="exact_match",
    )
    direction: Literal["auto", "minimize", "maximize"] = key(
        "auto",
        "Which values are better; auto: low for validation_loss and perplexity, else high.",
        owner="tuning.objective",
        other="maximize",
    )
    trials: int | None = key(
        20, "Trials in all, over every start and worker.", owner="tuning.worker", unit="trials", other=3, ge=1
    )
    minutes: float | None = key(
        None,
        "Time in all, over every start of the command; the trial at work is saved and goes on when there is more.",
        owner="tuning.worker",
        unit="minutes",
        other=5.0,
        gt=0,
    )
    prune: Literal["asha", "none"] = key(
        "asha",
        "asha gives a trial up when its validation loss is not among the best third at 1/9 and at 1/3 of its steps.",
        owner="tuning.rungs",
        other="none",
    )
    sampler: Literal["tpe", "random"] = key(
        "tpe",
        "How values are drawn: tpe learns from the trials before; random does not.",
        owner="tuning.study",
        other="random",
    )
    keep: Literal["all", "best"] = key(
        "all",
        "Whose trained weights stay on the disk; the record of every trial does.",
        owner="tuning.worker",
        other="best",
    )
    seed: int = key(
        17,
        "What is drawn follows from it and from the trials before.",
        owner="tuning.study",
        other=18,
        ge=0,
        le=2**31 - 1,
    )


RANGED_KEYS = Literal["train.learning_rate", "train.batch_size", "train.epochs", "adapter.rank", "adapter.alpha"]


class Recipe(Section):
    name: str = key(
        "run",
        "Name of the run, part of its folder's name.",
        owner="runs",
        other="mine",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$",
    )
    seed: int = key(
        17, "Everything random follows from it.", owner="stages.train.batches", other=18, ge=0, le=2**31 - 1
    )
    model: Model = key(Model, "The model to start from.", owner="hub")
    adapter: Adapter = key(
        Lora, "lora trains small matrices beside frozen weights; full trains every weight.", owner="modeling.adapters"
    )
    data: Data = key(doc="The rows and what happens to them.", owner="stages.prepare")
    compute: Annotated[LocalCompute | RayCompute, Field(discriminator="type")] = key(
        LocalCompute,
        "Where rows are read and encoded: local, or ray. What is made does not depend on it.",
        owner="stages.prepare.spread",
    )
    train: Train = key(Train, "The training loop.", owner="stages.train")
    evaluate: Evaluate = key(Evaluate, "How base and tuned model are compared.", owner="stages.evaluate")
    gate: Gate = key(Gate, "What a model must show before it is exported or served.", owner="stages.evaluate.gate")
    export: Export = key(Export, "What is written for use elsewhere.", owner="stages.export")
    serve: Serve = key(Serve, "The endpoint.", owner="stages.serve")
    track: Track = key(Track, "Where events go besides events.jsonl.", owner="tracking")
    report: Report = key(Report, "What the report may show; no stage reads it.", owner="report")

    accept_unusual: tuple[RANGED_KEYS, ...] = key(
        (),
        "Keys whose values you mean although they are out of the usual range: no warning about them.",
        owner="planner.ranges",
        other=("train.learning_rate",),
    )
    tune: Tune = key(Tune, "The search of `tunesmith tune`; a run does not read it.", owner="tuning")

    # Where each value came from, by key: "file" or "--set". No part of what the recipe says, so no part of equality.
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin(self, key: str) -> Literal["default", "file", "--set"]:
        """Where the value of a key came from; for a section, "default" only when nothing below it was written."""
        told = {where for path, where in self._origins.items() if path == key or path.startswith(key + ".")}
        above = {where for path, where in self._origins.items() if key.startswith(path + ".")}
        for where in ("--set", "file"):
            if where in told or where in above:
                return where  # type: ignore[return-value]
        return "default"

    def is_written(self, key: str) -> bool:
        """Whether this very key was written; `leaks: drop` writes no key below data.leaks."""
        return key in self._origins

    def value(self, key: str) -> Any:
        """The value at a dotted path, as plain data. Raises KeyError for a path that is not there."""
        node: Any = self.model_dump(mode="json")
        for part in key.split("."):
            node = node[int(part)] if isinstance(node, list) else node[part]
        return node

    def slice(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """The values of some paths: what a stage's fingerprint is made of."""
        return {key: self.value(key) for key in keys}

    def hash(self) -> str:
        """64 hex characters of the resolved recipe: equal content, equal hash."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Equal by content; where values came from does not matter."""
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = Section.__hash__

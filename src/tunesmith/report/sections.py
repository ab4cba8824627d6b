"""The parts of the page, each a function of the facts; a part without facts is empty text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from html import escape
from typing import Any

from tunesmith.recipe import change_lines
from tunesmith.report import charts
from tunesmith.report.data import examined, fate, measured, sample, together
from tunesmith.report.markup import code, cut, section
from tunesmith.units import format_bytes, format_count, format_gain, format_score, format_seconds

# kind of item -> (class of its colour, class of its frame, what it means)
CHANGES = {
    "broken": ("bad", "broken", "the base was right, the tuned model is wrong"),
    "still wrong": ("lost", "wrong", "both are wrong"),
    "fixed": ("used", "fixed", "the base was wrong, the tuned model is right"),
    "still right": ("right", "right", "both are right"),
    "asked": ("base", "right", "no metric judges single answers here"),
}
SHOWN_PROBLEMS = 10
TEXTS = {
    "shown": "",
    "masked": " Letters are shown as x and digits as 0 (report.texts: masked), so that different answers may look alike.",
    "hidden": " Texts are left out (report.texts: hidden); the places of some items stand here.",
}


def head(facts: dict[str, Any]) -> str:
    recipe = facts["recipe"]
    adapter = recipe["adapter"]
    method = "full fine-tuning" if adapter["type"] == "full" else f"{adapter['type'].upper().replace('LORA', 'LoRA')}"
    rank = f" rank {adapter['rank']}" if "rank" in adapter else ""
    when = str((facts["environment"] or {}).get("time", ""))[:10]
    told = [recipe["model"]["base"], f"{method}{rank}", f"run {facts['run']}", when]
    return f"<h1>{escape(facts['name'])}</h1><p class='soft'>{escape(' · '.join(part for part in told if part))}</p>"


def verdict(facts: dict[str, Any]) -> str:
    """The banner: ship, hold, or where it stopped and what to do."""
    evaluation, trouble = facts["evaluation"], facts["status"]["trouble"]
    if trouble and trouble["kind"] != "stage/held":
        return _trouble(trouble)
    if not evaluation:
        done = [stage for stage, is_done in facts["status"]["stages"].items() if is_done]
        return _banner("stop", "Not evaluated yet", f"<p>finished: {escape(', '.join(done) or 'nothing')}</p>")
    gate = evaluation["gate"]
    word = "Ship" if gate["verdict"] == "ship" else "Hold"
    return _banner(gate["verdict"], word, f"<p>{escape(_sentence(gate['reason']))}</p>")


def _trouble(trouble: dict[str, Any]) -> str:
    what = trouble["what"] if isinstance(trouble["what"], dict) else {"what": str(trouble["what"])}
    out = [f"<p>{escape(str(what.get('what', '')))}</p>"]
    problems = what.get("problems") or []
    items = []
    for problem in problems[:SHOWN_PROBLEMS]:
        place = f"{problem['code']} {problem['where']}".strip()
        told = "" if problem["what"] == what.get("what") else f" {escape(problem['what'])}"
        fix = f"<br>Try: {escape(problem['fix'])}" if problem["fix"] else ""
        items.append(f"<li><code>{escape(place)}</code>{told}{fix}</li>")
    if items:
        out.append(f"<ul>{''.join(items)}</ul>")
    if len(problems) > SHOWN_PROBLEMS:
        out.append(f"<p>and {len(problems) - SHOWN_PROBLEMS} more</p>")
    return _banner("stop", f"Stopped in {trouble['stage']}", "".join(out))


def _banner(kind: str, word: str, body: str) -> str:
    return f'<div class="banner {escape(kind)}"><b>{escape(word)}</b>{body}</div>'


def tiles(facts: dict[str, Any]) -> str:
    """The run in a few numbers."""
    out = [*_judged(facts), *_rows_used(facts), *_trained(facts), *_proven(facts)]
    made = "".join(
        f"<div class='tile'><span>{escape(label)}</span><b>{escape(value)}</b><small class='soft'>{escape(more)}</small></div>"
        for label, value, more in out
    )
    return f"<div class='tiles'>{made}</div>" if made else ""


Tile = tuple[str, str, str]


def _judged(facts: dict[str, Any]) -> Iterable[Tile]:
    evaluation = facts["evaluation"]
    found = evaluation["overall"]["metrics"].get(evaluation["gate"]["metric"]) if evaluation else None
    if not found or found["gain"]["value"] is None:
        return
    base, tuned, gain = (found[name] for name in ("base", "tuned", "gain"))
    value = f"{format_score(base['value'])} → {format_score(tuned['value'])}"
    low, high = format_gain(gain["low"]), format_gain(gain["high"])
    yield evaluation["gate"]["metric"], value, f"gain {format_gain(gain['value'])} ({low} to {high}), n = {gain['n']:,}"


def _rows_used(facts: dict[str, Any]) -> Iterable[Tile]:
    statistics = facts["statistics"]
    if statistics:
        trained = statistics["splits"]["train"]["rows"]
        yield "rows used", f"{statistics['used']:,} of {statistics['read']:,}", f"{trained:,} to train on"


def _trained(facts: dict[str, Any]) -> Iterable[Tile]:
    notes, seconds = facts["training"], facts["status"]["seconds"].get("train")
    if notes:
        more = f"{notes['steps']:,} steps, {format_count(notes['tokens'])} tokens"
        yield "training", format_seconds(seconds) if seconds else "done", more


def _proven(facts: dict[str, Any]) -> Iterable[Tile]:
    for stage, what in (("serve", "as served"), ("export", "as exported")):
        found = facts["parity"][stage]
        if found and found["n"]:
            yield f"same model, {what}", found["verdict"], f"{found['equal']:,} of {found['n']:,} answers equal"
            return


def scores(facts: dict[str, Any]) -> str:
    evaluation = facts["evaluation"]
    if not evaluation:
        return ""
    if not evaluation["parts"]:
        return section("Scores", "<p>No row was held out, so nothing was measured.</p>")
    confidence = evaluation["settings"]["confidence"]
    out = [
        f"<p class='soft'>Base and tuned model on the same held-out rows, greedy. Whiskers and ranges: {confidence:.0%} intervals. "
        "A gain is paired, item by item, and positive where the tuned model is better.</p>"
    ]
    for part, found in evaluation["parts"].items():
        rows = (
            f"{found['n']:,} rows" if found["items"] == found["n"] else f"{found['n']:,} rows, {found['items']:,} asked"
        )
        out.append(f"<h3>{escape(part)} <small>{rows}</small></h3>")
        out += [_metric(name, values) for name, values in found["metrics"].items()]
    return section("Scores", "".join(out))


def _metric(name: str, values: dict[str, Any]) -> str:
    gain = values["gain"]
    sides = "".join(_side(who, values[who], values["higher_is_better"]) for who in ("base", "tuned"))
    note = "" if values["higher_is_better"] else "<small> lower is better</small>"
    range_ = f"{format_gain(gain['low'])} to {format_gain(gain['high'])}" if gain["low"] is not None else "no interval"
    told = f"<b>{format_gain(gain['value'])}</b> <small>gain, {range_}</small>"
    return f"<div class='metric'><div>{escape(name)}{note}</div><div>{sides}</div><div class='gain'>{told}</div></div>"


def _side(who: str, found: dict[str, Any], is_share: bool) -> str:
    value = found["value"]
    text = format_score(value)
    low, high = format_score(found["low"]), format_score(found["high"])
    if is_share and value is not None:
        kind = "base" if who == "base" else "tuned"
        bar = charts.interval_bar(value, found["low"], found["high"], kind, f"{who}: {text} ({low} to {high})")
        return f"<div class='side'><span>{who}</span>{bar}<b>{text}</b></div>"
    range_ = f" <span>({low} to {high})</span>" if value is not None else ""
    return f"<div class='side'><span>{who}</span><div class='wide'><b>{text}</b>{range_}</div></div>"


def examples(facts: dict[str, Any]) -> str:
    found = facts["examples"]
    if not found:
        return ""
    kinds = [kind for kind in CHANGES if kind in found["counts"]]
    total = f"{found['n']:,} items" + (f", by {found['metric']}" if found["metric"] else "")
    order = ("fixed", "still right", "still wrong", "broken", "asked")
    pieces = [(kind, found["counts"][kind], CHANGES[kind][0]) for kind in order if kind in found["counts"]]
    told = f"{total}. An item is right with the full score of 1.{TEXTS[facts['recipe']['report']['texts']]}"
    out = [f"<p class='soft'>{escape(told)}</p>", charts.stack(pieces)]
    for kind in kinds:
        shown = found["shown"].get(kind)
        if shown:
            some = "" if len(shown) == found["counts"][kind] else f", {len(shown)} shown"
            out.append(
                f"<h3>{kind.capitalize()} <small>{found['counts'][kind]:,}{some}: {CHANGES[kind][2]}</small></h3>"
            )
            if facts["recipe"]["report"]["texts"] == "hidden":
                out.append(f"<p>{', '.join(code(entry['place']) for entry in shown)}</p>")
            else:
                out += [_example(entry, CHANGES[kind][1], place == 0) for place, entry in enumerate(shown)]
    return section("Before and after", "".join(out))


def _example(entry: dict[str, Any], frame: str, is_open: bool) -> str:
    asked = "\n".join(f"{message['role']}: {message['content']}" for message in entry["messages"])
    first = " ".join(str(entry["messages"][-1]["content"]).split())[:90] if entry["messages"] else ""
    rows = "".join(
        f"<tr><th>{who}</th><td><pre>{text}</pre></td></tr>"
        for who, text in (
            ("expected", cut(entry["expected"])),
            ("base", _marked(entry["base"], entry["expected"])),
            ("tuned", _marked(entry["tuned"], entry["expected"])),
        )
    )
    return (
        f"<details class='item {frame}'{' open' if is_open else ''}><summary>{escape(entry['part'])}, "
        f"{escape(entry['place'])}{escape(f': {first}' if first else '')}</summary><pre>{cut(asked, 1500)}</pre>"
        f"<table class='answers'>{rows}</table></details>"
    )


def _marked(answer: str, expected: str) -> str:
    """The answer with what differs from the expected text marked: all between the common beginning and the common end."""
    if answer.strip() == expected.strip():
        return cut(answer)
    start = _common(answer, expected)
    end = _common(answer[start:][::-1], expected[start:][::-1])
    middle = answer[start : len(answer) - end]
    head, tail = cut(answer[:start]), cut(answer[len(answer) - end :] if end else "")
    shown = cut(middle) if middle else "(ends here)" if not tail else "(something is missing here)"
    return f'{head}<span class="differs">{shown}</span>{tail}'


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def training(facts: dict[str, Any]) -> str:
    found = facts["curves"]
    losses = {"training": found.get("train/loss", []), "validation": found.get("validation/loss", [])}
    drawn = [
        charts.lines(losses, "step", "loss in nats per token", log=True),
        charts.lines({"learning rate": found.get("train/learning_rate", [])}, "step", "learning rate"),
        charts.lines({"tokens per second": found.get("train/tokens_per_second", [])}, "step", "tokens per second"),
        charts.lines({"noise scale": found.get("train/gradient_noise_scale", [])}, "step", "examples", log=True),
    ]
    if not any(drawn):
        return ""
    return section("Training", _training_facts(facts["training"]) + "".join(drawn))


def _training_facts(notes: dict[str, Any] | None) -> str:
    if not notes:
        return ""
    told = [f"{notes['steps']:,} steps", f"{format_count(notes['tokens'])} tokens"]
    judged = notes.get("best_metric", "loss")
    if judged != "loss" and isinstance(notes.get("best_value"), (int, float)):
        told.append(f"best validation {judged} {notes['best_value']:.4g} at step {notes['best_step']:,}")
    elif isinstance(notes.get("best_loss"), (int, float)):
        told.append(f"lowest validation loss {notes['best_loss']:.4g} at step {notes['best_step']:,}")
    told.append(f"the weights of step {notes['result_step']:,} became the result")
    timed = ", ".join(f"{name} {ms:.2f} ms" for name, ms in (notes.get("attention_ms") or {}).items())
    told.append(f"{notes['precision']}, {notes['attention']} attention{f' (timed: {timed})' if timed else ''}")
    told.append(f"{notes['micro_batch']} longest rows at once")
    if notes.get("kernels", "torch") != "torch":
        told.append(f"{notes['kernels']} kernels")
    if notes.get("compile"):
        told.append(f"layers compiled in {notes['compile']['seconds']:.0f} s: {notes['compile']['gain']:.2f} x as fast")
    if notes.get("gradient_checkpointing"):
        told.append("activations recomputed")
    threads = f"{notes['threads']} thread{'s' * (notes['threads'] != 1)}"
    told.append(f"{notes['processes']} processes of {threads}" if notes["processes"] > 1 else threads)
    if notes.get("skipped"):
        told.append(f"{len(notes['skipped'])} steps withheld because they were not finite")
    return f"<p>{escape('; '.join(told))}.</p>"


def plan(facts: dict[str, Any]) -> str:
    if not facts["plan"]:
        return ""
    rows = []
    for figure in facts["plan"]:
        measured, unit = figure["measured"], figure["unit"]
        inside = "" if measured is None else "inside" if figure["low"] <= measured <= figure["high"] else "outside"
        cells = (
            _show(figure["value"], unit),
            f"{_show(figure['low'], unit)} to {_show(figure['high'], unit)}",
            "" if measured is None else _show(measured, unit),
        )
        numbers = "".join(f"<td class='number'>{escape(cell)}</td>" for cell in cells)
        name = escape(figure["name"].replace("_", " "))
        rows.append(f"<tr><td>{name}</td>{numbers}<td class='{inside}'>{inside}</td></tr>")
    heads = "".join(f"<th class='number'>{head}</th>" for head in ("planned", "band", "measured"))
    table = f"<div class='scroll'><table><tr><th></th>{heads}<th></th></tr>{''.join(rows)}</table></div>"
    return section("Plan beside measured", table)


def parity(facts: dict[str, Any]) -> str:
    out = []
    for found in facts["parity"].values():
        if found:
            equal = (
                f"{found['equal']:,} of {found['n']:,} greedy answers equal" if found["n"] else "no answers to compare"
            )
            told = [equal, *_logits(found), *_rendering(found)]
            kind = "outside" if found["verdict"] == "different" else "inside"
            out.append(
                f"<tr><td>{escape(found['what'])}</td><td class='{kind}'>{escape(found['verdict'])}</td>"
                f"<td>{escape('; '.join(told))}<br><small>{escape(found['rule'])}</small></td></tr>"
            )
            out.append(_quantised(found.get("quantised_base")))
    return section("Proof that it is the same model", f"<table>{''.join(out)}</table>") if any(out) else ""


def _quantised(found: dict[str, Any] | None) -> str:
    """What merging into the unquantised base changed, in one row."""
    if not found:
        return ""
    return (
        f"<tr><td>merged into {escape(found['merged_into'])}</td><td></td><td>beside what training saw: KL {found['kl_per_token']:.2g} "
        f"nats per token, the same top token on {found['top_token_share']:.1%} of {found['tokens']:,}, "
        f"{found['equal_answers']} of {found['answers']} greedy answers equal</td></tr>"
    )


def _logits(found: dict[str, Any]) -> Iterable[str]:
    largest = found.get("max_abs_logit_difference")
    if not isinstance(largest, (int, float)):
        return
    yield f"largest logit difference {largest:.2g} over {found['rows']:,} rows (tolerance {found['tolerance']:.2g})"
    merge = found.get("merge")
    if merge:
        yield f"the merge alone, in {merge['precision']}: {merge['steps']:.3g} rounding steps (at most {merge['limit']:g})"
    moved = found.get("moved_share")
    if moved:
        yield f"training had moved the logits {format_count(1 / moved)} times as far"


def _rendering(found: dict[str, Any]) -> Iterable[str]:
    rendering = found.get("rendering")
    if rendering and rendering["prompts"]:
        yield (
            f"the exported template renders {rendering['prompts']:,} prompts as training did, "
            f"{rendering['same_ids']:,} of them to the same tokens"
        )


def notes(facts: dict[str, Any]) -> str:
    """What else happened: nothing of it may pass unseen."""
    if not facts["notes"]:
        return ""
    items = []
    for note in facts["notes"][:50]:
        step = f" (step {note['step']:,})" if note["step"] is not None else ""
        items.append(f"<li>{escape(note['what'])}{step}: {cut(_told(note['value']), 400)}</li>")
    more = len(facts["notes"]) - len(items)
    items += [f"<li>and {more:,} more in events.jsonl</li>"] if more else []
    return section("Worth knowing", f"<ul>{''.join(items)}</ul>")


def _told(value: Any) -> str:
    """A note's value as people read it: {key: [old, new]} as key: old → new."""
    if isinstance(value, dict):
        pairs = {key: item if isinstance(item, list) else [item] for key, item in value.items()}
        return "; ".join(f"{key}: {' → '.join(map(str, items))}" for key, items in pairs.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def provenance(facts: dict[str, Any]) -> str:
    environment = facts["environment"] or {}
    packages = ", ".join(
        f"{name} {version}" for name, version in (environment.get("packages") or {}).items() if version
    )
    machine = [
        str(environment.get("cpu", "")),
        f"{environment['cores']} cores" if "cores" in environment else "",
        f"python {environment['python']}" if "python" in environment else "",
        packages,
    ]
    artifacts = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(found['kind'])}</td><td><code>{escape(found['id'])}</code></td></tr>"
        for name, found in facts["artifacts"].items()
    )
    spent = facts["status"]["seconds"]
    seconds = ", ".join(
        f"{stage} {format_seconds(spent[stage])}" for stage in facts["status"]["stages"] if stage in spent
    )
    out = [f"<p>{escape('; '.join(part for part in machine if part))}.</p>" if any(machine) else ""]
    out.append(f"<p>Time by stage: {escape(seconds)}.</p>" if seconds else "")
    parent = facts["parent"]
    if parent:
        changed = "; ".join(change_lines(parent["changed"])).replace(" -> ", " → ") or "nothing"
        out.append(f"<p>Parent run: {escape(parent['run'])}; changed since: {escape(changed)}.</p>")
    out.append(f"<div class='scroll'><table>{artifacts}</table></div>" if artifacts else "")
    return section("Where it comes from", "".join(out)) if any(out) else ""


def repeat(facts: dict[str, Any]) -> str:
    environment = facts["environment"] or {}
    command = " ".join(environment.get("command") or ["tunesmith", "run", "recipe.yaml"])
    recipe = escape(json.dumps(facts["recipe"], indent=1, ensure_ascii=False))
    return section(
        "How to repeat it",
        f"<pre>{escape(command)}</pre><p>The same recipe on the same rows gives the same bits on the same kind of machine; run again, "
        f"it does nothing and says so.</p><details><summary>the resolved recipe</summary><pre>{recipe}</pre></details>",
    )


def next_steps(facts: dict[str, Any]) -> str:
    own = """tunesmith init YOUR_ROWS.jsonl       # looks at your rows, writes a commented recipe
tunesmith run recipe.yaml            # does all of the above for them"""
    if not facts["status"]["stages"]["export"]:
        return section("Next, with rows of your own", f"<pre>{own}</pre>")
    return section(
        "Next, with rows of your own",
        f"""<pre>tunesmith chat {escape(facts["run"])}        # talk to this model
tunesmith serve {escape(facts["run"])}       # keep an OpenAI-compatible endpoint
{own}</pre>""",
    )


ALL = (
    head, verdict, tiles, scores, examples, fate, measured, together, examined, sample, training, plan, parity, notes, provenance, repeat, next_steps,
)  # fmt: skip


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _show(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return str(value)
    return {"bytes": format_bytes, "s": format_seconds}.get(unit, format_count)(value)


def render(facts: dict[str, Any]) -> Iterable[str]:
    """All sections in order."""
    return (part(facts) for part in ALL)

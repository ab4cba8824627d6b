"""The parts of the page, each a function of the facts; a part without facts is empty text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from tunesmith.report import charts
from tunesmith.units import format_bytes, format_count, format_seconds

RULES = {
    "bad_row": "could not be read",
    "too_short": "too short",
    "too_long_text": "too long (characters)",
    "quality": "low quality score",
    "duplicate": "exact duplicate",
    "leak": "also in the held-out rows",
    "too_long": "too long (tokens)",
    "nothing_to_learn": "nothing to learn",
    "template": "refused by the template",
}


def verdict(facts: dict[str, Any]) -> str:
    """The banner: ship, hold, or where it stopped."""
    evaluation, trouble = facts["evaluation"], facts["status"]["trouble"]
    if trouble and trouble["kind"] != "stage/held":
        what = trouble["what"].get("what", "") if isinstance(trouble["what"], dict) else str(trouble["what"])
        return f'<div class="banner stop"><b>Stopped in {escape(trouble["stage"])}</b><p>{escape(what)}</p></div>'
    if not evaluation:
        done = [stage for stage, is_done in facts["status"]["stages"].items() if is_done]
        return f'<div class="banner stop"><b>Not evaluated yet</b><p>finished: {escape(", ".join(done) or "nothing")}</p></div>'
    gate = evaluation["gate"]
    word = "Ship" if gate["verdict"] == "ship" else "Hold"
    return f'<div class="banner {escape(gate["verdict"])}"><b>{word}</b><p>{escape(gate["reason"])}</p></div>'


def scores(facts: dict[str, Any]) -> str:
    evaluation = facts["evaluation"]
    if not evaluation:
        return ""
    out = []
    for part, found in evaluation["parts"].items():
        out.append(f"<h3>{escape(part)} <small>{found['n']} items, base and tuned asked the same, greedy</small></h3>")
        bars = []
        for metric, values in found["metrics"].items():
            bars += [(f"{metric}: base", values["base"], "base"), (f"{metric}: tuned", values["tuned"], "used")]
        out.append(charts.interval_bars(bars))
        gains = "; ".join(
            f"{metric} {values['gain']['value']:+.3f} ({values['gain']['low']:+.3f} to {values['gain']['high']:+.3f})"
            for metric, values in found["metrics"].items()
            if values["gain"]["value"] is not None
        )
        out.append(f"<p>Paired gain: {escape(gains)}.</p>")
    perplexity = evaluation["perplexity"]
    if perplexity["base"] and perplexity["tuned"]:
        out.append(
            f"<p>Perplexity of the expected answers: base {perplexity['base']:.4g}, tuned {perplexity['tuned']:.4g}.</p>"
        )
    return _section("Scores", "".join(out))


def data(facts: dict[str, Any]) -> str:
    statistics = facts["statistics"]
    if not statistics:
        return ""
    steps = [("read", statistics["read"], "base")]
    steps += [(RULES.get(item["rule"], item["rule"]), item["dropped"], "lost") for item in statistics["funnel"]]
    steps.append(("used", statistics["used"], "used"))
    rows = "".join(
        f"<tr><td>{name}</td><td>{values['rows']:,}</td><td>{values['tokens']:,}</td><td>{values['learned_tokens']:,}</td>"
        f"<td>{values['p50']} / {values['p99']} / {values['max']}</td></tr>"
        for name, values in statistics["splits"].items()
    )
    table = f"<table><tr><th>split</th><th>rows</th><th>tokens</th><th>learned</th><th>length p50 / p99 / max</th></tr>{rows}</table>"
    formats = ", ".join(f"{name} ({count:,})" for name, count in statistics["formats"].items())
    told = f"<p>Recognised: {escape(formats)}. Each row is in the ledger: <code>tunesmith explain FILE:LINE --run {escape(facts['run'])}</code>.</p>"
    lengths = charts.histogram(statistics["lengths"]["counts"], statistics["lengths"]["edges"], "tokens per row")
    return _section("Data: what became of every row", charts.funnel(steps, statistics["read"]) + told + table + lengths)


def sample(facts: dict[str, Any]) -> str:
    if not facts["samples"]:
        return ""
    out = [
        "<p>Rows as the model sees them; <mark>marked</mark> is learned (loss is taken there), the rest is read only.</p>"
    ]
    for row in facts["samples"]:
        pieces = "".join(
            f"<mark>{escape(piece['text'])}</mark>" if piece["learned"] else escape(piece["text"])
            for piece in row["pieces"]
        )
        out.append(f'<p class="place">{escape(row["place"])}</p><pre>{pieces}</pre>')
    return _section("What is learned", "".join(out))


def curves(facts: dict[str, Any]) -> str:
    found = facts["curves"]
    if "train/loss" not in found:
        return ""
    losses = {
        "training loss": found["train/loss"],
        **({"validation loss": found["validation/loss"]} if "validation/loss" in found else {}),
    }
    out = [
        charts.lines(losses, "step", "loss", log=True),
        charts.lines({"learning rate": found["train/learning_rate"]}, "step", "rate"),
    ]
    if "train/tokens_per_second" in found:
        out.append(charts.lines({"tokens per second": found["train/tokens_per_second"]}, "step", "tokens/s"))
    if "train/gradient_noise_scale" in found:
        out.append(
            charts.lines({"gradient noise scale": found["train/gradient_noise_scale"]}, "step", "examples", log=True)
        )
    return _section("Training", "".join(out))


def plan(facts: dict[str, Any]) -> str:
    if not facts["plan"]:
        return ""
    rows = []
    for figure in facts["plan"]:
        measured = figure["measured"]
        inside = "" if measured is None else "inside" if figure["low"] <= measured <= figure["high"] else "outside"
        rows.append(
            f"<tr><td>{escape(figure['name'].replace('_', ' '))}</td><td>{_show(figure['value'], figure['unit'])}</td>"
            f"<td>{_show(figure['low'], figure['unit'])} to {_show(figure['high'], figure['unit'])}</td>"
            f"<td>{'' if measured is None else _show(measured, figure['unit'])}</td><td class='{inside}'>{inside}</td></tr>"
        )
    head = "<tr><th></th><th>planned</th><th>band</th><th>measured</th><th></th></tr>"
    return _section("Plan beside measured", f"<table>{head}{''.join(rows)}</table>")


def examples(facts: dict[str, Any]) -> str:
    found = facts["examples"]
    if not found:
        return ""
    out = [
        f"<p>By {escape(str(found['metric']))}: {found['counts']['fixed']:,} items the base got wrong and the tuned model right; "
        f"{found['counts']['broken']:,} that the tuned model gets wrong.</p>"
    ]
    for title, name in (("Fixed", "fixed"), ("Broken or still wrong", "broken")):
        if found[name]:
            out.append(f"<h3>{title}</h3>" + "".join(map(_example, found[name])))
    return _section("Before and after", "".join(out))


def _example(entry: dict[str, Any]) -> str:
    asked = "\n".join(f"{message['role']}: {message['content']}" for message in entry["messages"])
    return (
        f"<details{' open' if len(asked) < 400 else ''}><summary>{escape(entry['part'])}, row {entry['row']}</summary><pre>{escape(asked[:1500])}</pre>"
        f'<table class="answers"><tr><th>expected</th><td><pre>{escape(entry["expected"][:800])}</pre></td></tr>'
        f"<tr><th>base</th><td><pre>{_marked(entry['base'][:800], entry['expected'])}</pre></td></tr>"
        f"<tr><th>tuned</th><td><pre>{_marked(entry['tuned'][:800], entry['expected'])}</pre></td></tr></table></details>"
    )


def _marked(answer: str, expected: str) -> str:
    """The answer with everything behind the first difference from the expected text marked."""
    if answer.strip() == expected.strip():
        return escape(answer)
    place = next(
        (i for i, (one, other) in enumerate(zip(answer, expected, strict=False)) if one != other),
        min(len(answer), len(expected)),
    )
    return escape(answer[:place]) + f'<span class="differs">{escape(answer[place:]) or "(ends here)"}</span>'


def parity(facts: dict[str, Any]) -> str:
    out = []
    for found in facts["parity"].values():
        if found:
            largest = found.get("max_abs_logit_difference")
            more = (
                f", largest logit difference {largest:.2g} (tolerance {found['tolerance']:g})"
                if isinstance(largest, (int, float))
                else ""
            )
            out.append(
                f"<tr><td>{escape(found['what'])}</td><td class='inside'>{escape(found['verdict'])}</td><td>{found['equal']} of {found['n']} equal{more}</td></tr>"
            )
    return _section("Proof that it is the same model", f"<table>{''.join(out)}</table>") if out else ""


def provenance(facts: dict[str, Any]) -> str:
    environment = facts["environment"] or {}
    packages = ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items())
    artifacts = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(found['kind'])}</td><td><code>{escape(found['id'])}</code></td></tr>"
        for name, found in facts["artifacts"].items()
    )
    seconds = ", ".join(f"{stage} {format_seconds(value)}" for stage, value in facts["status"]["seconds"].items())
    parent = facts["parent"]
    came = (
        f"<p>Parent run: {escape(parent['run'])}; changed: {escape(json.dumps(parent['changed']))}</p>"
        if parent
        else ""
    )
    return _section(
        "Where it comes from",
        f"<p>{escape(str(environment.get('cpu', '')))}, {environment.get('cores', '?')} cores; python {escape(str(environment.get('python', '')))}; "
        f"{escape(packages)}.</p><p>Time by stage: {escape(seconds)}.</p>{came}<table>{artifacts}</table>",
    )


def repeat(facts: dict[str, Any]) -> str:
    environment = facts["environment"] or {}
    command = " ".join(environment.get("command") or ["tunesmith", "run", "recipe.yaml"])
    recipe = escape(json.dumps(facts["recipe"], indent=1, ensure_ascii=False))
    return _section(
        "How to repeat it",
        f"<pre>{escape(command)}</pre><p>The same recipe on the same rows gives the same bits on the same kind of machine; run again, "
        f"it does nothing and says so.</p><details><summary>the resolved recipe</summary><pre>{recipe}</pre></details>",
    )


def next_steps(facts: dict[str, Any]) -> str:
    return _section(
        "Next, with rows of your own",
        f"""<pre>tunesmith chat {escape(facts["run"])}        # talk to this model
tunesmith serve {escape(facts["run"])}       # keep an OpenAI-compatible endpoint
tunesmith init YOUR_ROWS.jsonl       # looks at your rows, writes a commented recipe
tunesmith run recipe.yaml            # does all of the above for them</pre>""",
    )


ALL = (verdict, scores, examples, data, sample, curves, plan, parity, provenance, repeat, next_steps)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _show(value: float, unit: str) -> str:
    return {"bytes": format_bytes, "s": format_seconds}.get(unit, format_count)(value)


def render(facts: dict[str, Any]) -> Iterable[str]:
    """All sections in order."""
    return (section(facts) for section in ALL)

"""The page: one file, no script, nothing loaded from elsewhere; light and dark; prints well."""

from __future__ import annotations

from html import escape
from pathlib import Path

from tunesmith.report.facts import gather
from tunesmith.report.sections import render
from tunesmith.runs import durable
from tunesmith.runs.run import Run

STYLE = """
:root{--bg:#fbfaf7;--fg:#1d2129;--soft:#6b7280;--line:#e3e0d8;--card:#fff;--a:#0f766e;--b:#c2762b;--bad:#b3403a;--mark:#d7f0e3;--base:#b9bfc9}
@media(prefers-color-scheme:dark){:root{--bg:#15171b;--fg:#e6e4df;--soft:#9aa1ad;--line:#2c3038;--card:#1c1f25;--a:#3fb8a8;--b:#e0a05a;--bad:#e5776f;--mark:#17453b;--base:#59606c}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:820px;margin:0 auto;padding:32px 20px 64px}h1{font-size:30px;margin:0 0 4px}h2{font-size:19px;margin:0 0 12px}h3{font-size:15px;margin:18px 0 6px}
small,.soft,.place,summary{color:var(--soft);font-weight:400}section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin:18px 0}
.banner{border-radius:10px;padding:18px 22px;margin:20px 0;color:#fff}.banner b{font-size:22px}.banner p{margin:4px 0 0}.ship{background:#0f766e}.hold{background:#b3403a}.stop{background:#8a6116}
table{border-collapse:collapse;width:100%;font-size:13.5px}td,th{text-align:left;padding:5px 8px;border-bottom:1px solid var(--line);vertical-align:top}th{color:var(--soft);font-weight:500}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--bg);border:1px solid var(--line);border-radius:6px;padding:10px;margin:6px 0;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace}
code{font:12.5px ui-monospace,Menlo,Consolas,monospace}.answers pre{border:0;padding:0;margin:0;background:none}.answers th{width:80px}mark{background:var(--mark);color:inherit;border-radius:3px;padding:1px 0}
.differs{color:var(--bad)}.inside{color:var(--a)}.outside{color:var(--bad)}details{margin:8px 0}svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
.grid{stroke:var(--line)}.line{fill:none;stroke-width:1.8}.line.c0{stroke:var(--base)}.line.c1{stroke:var(--a)}.line:only-of-type{stroke:var(--a)}.dot.c0{fill:var(--base)}.dot.c1{fill:var(--a)}
.used{fill:var(--a)}.lost{fill:var(--b)}.base{fill:var(--base)}.whisker{stroke:var(--fg);stroke-width:2}.legend{margin:2px 0 10px}.key{margin-right:16px;font-size:13px}.key::before{content:"";display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle;background:var(--base)}
.key.c1::before,.key:only-child::before{background:var(--a)}@media print{body{background:#fff}section{break-inside:avoid}}
"""


def build(run: Run) -> Path:
    """Write report.json and report.html of a Run, finished or not; returns the page's path."""
    facts = gather(run)
    durable.write_json(run.path / "report.json", facts)
    recipe = facts["recipe"]
    adapter = f"LoRA rank {recipe['adapter']['rank']}" if recipe["adapter"]["type"] == "lora" else "full fine-tuning"
    head = f"<h1>{escape(facts['name'])}</h1><p class='soft'>{escape(recipe['model']['base'])}, {adapter}, run {escape(facts['run'])}</p>"
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(facts['name'])}: tunesmith report</title><style>{STYLE}</style></head>"
        f"<body><main>{head}{''.join(render(facts))}</main></body></html>\n"
    )
    path = run.path / "report.html"
    durable.write_text(path, page)
    return path

"""The page: one file, no script, nothing loaded from elsewhere; light and dark; wide and narrow; prints well."""

from __future__ import annotations

from html import escape
from pathlib import Path

from tunesmith.report.facts import gather
from tunesmith.report.sections import render
from tunesmith.runs import durable
from tunesmith.runs.run import Run

STYLE = """
:root{--bg:#f6f5f1;--fg:#1c2027;--soft:#656c78;--line:#e4e1d9;--card:#fff;--well:#f3f2ee;--tuned:#0f766e;--base:#a9b0bb;--lost:#c2762b;--bad:#b3403a;
--right:#9cc9bd;--mark:#cdebdd;--ship:#0f766e;--hold:#a83a34;--stop:#86600f}
@media(prefers-color-scheme:dark){:root{--bg:#131519;--fg:#e8e6e1;--soft:#9aa1ad;--line:#2a2e36;--card:#1a1d23;--well:#14161b;--tuned:#3fb8a8;--base:#5d6572;
--lost:#dd9c55;--bad:#e8796f;--right:#2d6158;--mark:#17483c;--ship:#0d5f58;--hold:#8f322d;--stop:#6f5010}}
*{box-sizing:border-box}html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
main{max-width:860px;margin:0 auto;padding:36px 20px 72px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px}h2{font-size:19px;margin:0 0 14px}h3{font-size:15px;margin:22px 0 8px}p{margin:8px 0}h2+h3{margin-top:0}
small,.soft,summary{color:var(--soft);font-weight:400}a{color:var(--tuned)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:22px 24px;margin:18px 0}
.banner{border-radius:12px;padding:20px 24px;margin:22px 0 18px;color:#fff}.banner b{font-size:24px}.banner p{margin:4px 0 0;max-width:62em}.banner li{margin:6px 0}.banner code{color:inherit}
.ship{background:var(--ship)}.hold{background:var(--hold)}.stop{background:var(--stop)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:0 0 18px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}.tile span{display:block;color:var(--soft);font-size:13px}.tile b{display:block;font-size:18px;line-height:1.45;font-variant-numeric:tabular-nums}.tile small{font-size:12.5px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px}td,th{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:normal}
tr:last-child td,.answers th{border-bottom:0}th{color:var(--soft);font-weight:500}td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--well);border:1px solid var(--line);border-radius:8px;padding:10px 12px;margin:6px 0;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}mark{background:var(--mark);color:inherit;border-radius:3px;padding:1px 0}
.track{position:relative;background:var(--well);border-radius:4px;height:14px;overflow:hidden}.track i,.stack i{display:block;height:100%}.track i{border-radius:4px}
.track .whisker{position:absolute;top:6px;height:2px;min-width:2px;background:var(--fg);border-radius:0}
i.tuned,i.used,.key.used::before{background:var(--tuned)}i.base,.key.base::before{background:var(--base)}i.lost,.key.lost::before{background:var(--lost)}i.bad,.key.bad::before{background:var(--bad)}i.right,.key.right::before{background:var(--right)}rect.used{fill:var(--tuned)}rect.lost{fill:var(--lost)}
.bar{display:grid;grid-template-columns:190px 1fr 116px;gap:12px;align-items:center;margin:5px 0;font-size:13.5px}.bar span{text-align:right}.bar b{font-weight:400;color:var(--soft);font-variant-numeric:tabular-nums}
.metric{display:grid;grid-template-columns:150px 1fr 190px;gap:4px 16px;align-items:center;padding:9px 0;border-top:1px solid var(--line)}.metric:first-of-type{border-top:0}
.side{display:grid;grid-template-columns:44px 1fr 62px;gap:8px;align-items:center;font-size:13px;color:var(--soft)}.side b{color:var(--fg);font-variant-numeric:tabular-nums}.side .wide{grid-column:2/4}
.gain b{font-variant-numeric:tabular-nums}.gain small{display:block}
.stack{display:flex;height:18px;border-radius:5px;overflow:hidden;background:var(--well);margin:10px 0 6px;gap:1px}
.keys{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:13px;color:var(--soft)}.keys b{color:var(--fg)}.key::before{content:"";display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px;background:var(--base)}
figure{margin:14px 0 4px}figcaption{font-size:13px;color:var(--soft);margin-bottom:4px}figcaption b{color:var(--fg)}figcaption .keys{display:inline-flex;margin-left:14px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--line)}.line{fill:none;stroke-width:1.7;stroke:var(--tuned)}.dot{fill:var(--tuned)}
.of2 .line.c0{stroke-width:1.2;opacity:.6}.line.c1{stroke:var(--lost);stroke-width:2.2}.dot.c1{fill:var(--lost)}.key.c0::before{background:var(--tuned)}.key.c1::before{background:var(--lost)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:0 26px}.pair svg text{font-size:19px}
details{margin:8px 0}summary{cursor:pointer;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}.answers{table-layout:fixed}.answers pre{border:0;padding:0;margin:0;background:none}.answers th{width:84px}.item{border-left:3px solid var(--line);padding-left:12px;margin:10px 0}.item.broken{border-color:var(--bad)}.item.fixed{border-color:var(--tuned)}.item.wrong{border-color:var(--lost)}.item.right{border-color:var(--right)}
.differs{color:var(--bad)}.inside{color:var(--tuned)}.outside{color:var(--bad)}
@media(max-width:640px){main{padding:22px 12px 48px}section{padding:18px 16px}.banner{padding:18px 16px}h1{font-size:25px}.metric{grid-template-columns:1fr}.bar{grid-template-columns:1fr 116px}.bar span{grid-column:1/3;text-align:left;margin-bottom:-8px}svg text{font-size:21px}.answers th,.answers td{display:block;border:0;padding:2px 0}figcaption .keys{display:flex;margin-left:0}}
@media print{body{background:#fff}main{max-width:none;padding:0}section,.tile,.item{break-inside:avoid}.banner,.track i,.stack i,mark{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""


def build(run: Run) -> Path:
    """Write report.json and report.html of a Run, finished or not; returns the page's path."""
    facts = gather(run)
    durable.write_json(run.path / "report.json", facts)
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(facts['name'])}: tunesmith report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(render(facts))}</main></body></html>\n"
    )
    path = run.path / "report.html"
    # A lone surrogate of a model's answer, which no page can hold, becomes visible instead of an error.
    durable.write_bytes(path, page.encode("utf-8", "backslashreplace"))
    return path

"""The endpoint: an OpenAI-compatible server for the exported model, proven to answer like evaluation did."""

from __future__ import annotations

from tunesmith.runs.stage import StageInfo

INFO = StageInfo(
    name="serve",
    needs=("export", "evaluation"),
    makes=("parity",),
    version=2,
    # Where it listens (host, port) and how it samples where nobody says (temperature, top_p) do not change what is proven.
    keys=(
        "serve.engine",
        "serve.compile",
        "serve.quantisation",
        "serve.adapters",
        "serve.max_new_tokens",
        "serve.max_body_bytes",
        "serve.queue",
        "serve.parity_items",
    ),
    externals="tunesmith.stages.serve.externals:externals",
    checks="tunesmith.stages.serve.checks:check",
)

"""The endpoint: an OpenAI-compatible server for the exported model, proven to answer like evaluation did."""

from __future__ import annotations

from tunesmith.runs.stage import StageInfo

INFO = StageInfo(
    name="serve",
    needs=("export", "evaluation"),
    makes=("parity",),
    version=1,
    # Where it listens (host, port) does not change what it answers.
    keys=("serve.max_new_tokens", "serve.max_body_bytes", "serve.queue", "serve.parity_items"),
)

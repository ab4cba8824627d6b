"""Evaluate: the tuned model against its base on the same held-out items, and the gate's verdict."""

from tunesmith.runs.stage import StageInfo

INFO = StageInfo(
    name="evaluate",
    needs=("dataset", "model"),
    makes=("evaluation",),
    version=2,
    keys=("evaluate", "gate", "model"),
    externals="tunesmith.stages.evaluate.externals:externals",
)

"""Prepare: bytes -> rows -> filters, duplicates, leaks, splits -> tokens -> a Dataset with its ledger."""

from tunesmith.runs.stage import StageInfo

INFO = StageInfo(
    name="prepare",
    needs=(),
    makes=("rows", "tokens", "dataset"),
    version=4,
    keys=("seed", "data", "model.base", "model.revision", "model.template"),
    externals="tunesmith.stages.prepare.externals:externals",
)

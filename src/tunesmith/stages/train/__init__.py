"""Train: step n = the examples that (seed, n) names -> micro-batches -> loss, gradients, update -> Adapter or Model."""

from tunesmith.runs.stage import StageInfo

INFO = StageInfo(
    name="train",
    needs=("dataset",),
    makes=("model",),
    version=1,
    keys=("seed", "model", "adapter", "train"),
    externals="tunesmith.stages.train.externals:externals",
    checks="tunesmith.stages.train.checks:check",
)

"""Export: merged files proven equal to what was trained; the adapter alone; a model card."""

from tunesmith.runs.stage import StageInfo

INFO = StageInfo(
    name="export",
    needs=("dataset", "model", "evaluation"),
    makes=("export", "parity", "adapter"),
    version=2,
    keys=("export", "model", "gate.require"),
    externals="tunesmith.stages.export.externals:externals",
    switches={"export": "export.merged", "parity": "export.merged", "adapter": "export.adapter"},
)

"""Why a step was not finite twice: which of its rows, which weight. Asked after the fact, so that good steps pay nothing."""

from __future__ import annotations

import math

from tunesmith.modeling.finite import is_finite
from tunesmith.stages.train.batches import share
from tunesmith.stages.train.loop import Loop


def rows_not_finite(loop: Loop, number: int, examples: list[int]) -> list[int]:
    """Those of a step's examples whose loss or gradients are not finite where they go through the model alone.

    Every process must ask; each looks at its share. Where weights lie in shards gradients belong to a round of examples,
    one of each process; with a loss scale or DeepSpeed only the loss is looked at. No weight changes.
    """
    engine = loop.engine
    mine = share(examples, loop.lengths, engine.rank, engine.world_size)
    rounds = -(-len(examples) // engine.world_size) if engine.in_step else len(mine)
    bad = dict.fromkeys(examples, 0.0)
    for group in [[example] for example in mine] + [[]] * (rounds - len(mine)):
        loss, _ = loop.accumulate(number, [group], float(loop.learned_weights[examples].sum()))
        good = math.isfinite(float(loss)) and (engine.loss_scale is not None or engine.finite_gradients())
        engine.discard()
        if group and not good:
            bad[group[0]] = 1.0
    return [example for example, count in zip(bad, engine.total(*bad.values()), strict=True) if count]


def weights_not_finite(loop: Loop) -> tuple[list[str], list[str]]:
    """Names of weights that hold a NaN or an infinity, those that train and those that do not; every process must ask."""
    named = [*loop.model.named_parameters(), *loop.model.named_buffers()]
    found = loop.engine.total(*(float(not is_finite(tensor)) for _, tensor in named))
    bad = [(name, tensor) for (name, tensor), count in zip(named, found, strict=True) if count]
    trained = {name for name, _ in loop.engine.parameters}
    return [name for name, _ in bad if name in trained], [name for name, _ in bad if name not in trained]

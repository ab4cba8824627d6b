"""The steps of a training in their order: begun, heard of, done again where that helps, left out where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tunesmith.runs.run import Run
from tunesmith.stages.train import spikes
from tunesmith.stages.train.checkpoint import TrainState
from tunesmith.stages.train.diagnosis import rows_not_finite, weights_not_finite
from tunesmith.stages.train.guards import note_non_finite
from tunesmith.stages.train.incidents import Incidents
from tunesmith.stages.train.loop import Loop, StepInFlight, StepResult
from tunesmith.stages.train.room import longest_misfit, row_too_large

Places = Callable[[Sequence[int]], list[str | int]]


class Steps:
    """Gives the device the next step before the one before is heard of, where the engine reads verdicts late.

    A step that was not finite is done once more: finite then, it was the hardware and nothing is lost; not finite again, its
    rows or the weights are to blame, and it is left out for good. One that did not fit is done again in smaller
    micro-batches. What was in flight behind a withheld step was withheld as well, and begins again after it.

    state.step: the last step that was heard of; who takes a result from `advance` counts it on before the next is asked for.
    places: FILE:LINE of examples, or their row ids. is_awaited: whether what comes after a step hangs on its verdict.
    """

    def __init__(
        self,
        loop: Loop,
        state: TrainState,
        incidents: Incidents,
        run: Run,
        places: Places,
        is_awaited: Callable[[int], bool],
    ) -> None:
        self.loop, self.state, self.incidents, self.run = loop, state, incidents, run
        self.places, self.is_awaited = places, is_awaited
        self.longest = int(loop.lengths[loop.order.examples].max())
        self.in_flight: list[StepInFlight] = []  # at most one while the next begins
        self.tried_again = 0  # the last step that was done a second time because it was not finite

    def advance(self) -> Iterator[StepResult]:
        """Begins the next step. Yields those that are over by now, in order: none, one or two."""
        number = self.state.step + len(self.in_flight) + 1
        if number in self.incidents.skipped:
            yield from self._hear_until(lambda: not self.in_flight)
            if number == self.state.step + 1:
                yield self._passed_over(number)
            return
        self.in_flight.append(self.loop.begin(number))
        at_once = not self.loop.engine.reads_late
        yield from self._hear_until(lambda: len(self.in_flight) < 2 and not (at_once or self.is_awaited(number)))

    def _hear_until(self, is_enough: Callable[[], bool]) -> Iterator[StepResult]:
        while self.in_flight and not is_enough():
            result = self.loop.result(self.in_flight.pop(0))
            if not result.applied:
                self.in_flight.clear()
            if not result.fits:
                self._do_with_less(result)
            elif not result.finite and self.tried_again != result.number:
                self.tried_again = result.number
                rows = self.places(result.examples)
                self.run.record("train", "train/nonfinite", rows, step=result.number, unit="rows")
            else:
                yield result
                self._tell_why(result)

    def _passed_over(self, number: int) -> StepResult:
        """A step that gave nothing finite, twice, before a checkpoint was gone back to: told then, not met again."""
        examples = self.loop.order.step(number)
        self.state.skipped.append(number)
        return StepResult.passed_over(number, examples, int(self.loop.lengths[examples].sum()))

    # --------------------------------------------------------------------------------------------------- not finite

    def _tell_why(self, result: StepResult) -> None:
        """What a second try shows, and what stands out. Raises ModelError TRN-002 after several steps that were left out,
        TRN-064 for trained weights that are spoiled."""
        step = result.number
        if result.finite:
            if self.tried_again == step:
                self.run.record("train", "train/nonfinite_cause", {"cause": "hardware"}, step=step)
            found = spikes.note(self.state.recent, {"loss": result.loss, "grad_norm": result.grad_norm})
            if found:
                told = {**found, "rows": self.places(result.examples)}
                self.run.record("train", "train/spike", told, step=step)
            return
        self.incidents.skip(step)
        trained, frozen = weights_not_finite(self.loop)
        rows = self.places(rows_not_finite(self.loop, step, result.examples))
        cause = "weights" if trained or frozen else "rows" if rows else "all rows together"
        told = {"cause": cause, "rows": rows, "weights": [*trained, *frozen]}
        self.run.record("train", "train/nonfinite_cause", told, step=step)
        note_non_finite(self.state, step, rows or self.places(result.examples), trained)

    # ------------------------------------------------------------------------------------------------------- memory

    def _do_with_less(self, result: StepResult) -> None:
        """The same examples once more in smaller micro-batches. Raises ModelError TRN-003 where one alone is too large."""
        example = longest_misfit(result.misfit, self.loop.lengths, self.loop.engine)
        if not self.take_smaller(f"in step {result.number}"):
            (row,) = self.places([example])
            raise row_too_large(str(row), int(self.loop.lengths[example]), self.loop.device)

    def take_smaller(self, why: str) -> bool:
        """Half the micro-batch from here on, whichever checkpoint this training goes on from. False where there is no half."""
        now = self.loop.budget_tokens // self.longest
        if now <= 1:
            return False
        self.state.micro_batch, self.loop.budget_tokens = now // 2, now // 2 * self.longest
        self.incidents.reduce(now // 2)
        told = {"micro_batch": now, "from_now_on": now // 2, "where": why}
        self.run.record("train", "train/out_of_memory", told)
        return True

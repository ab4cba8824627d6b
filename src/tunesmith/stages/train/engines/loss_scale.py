"""Loss scale for fp16: gradients below 6e-8 would vanish, so losses are multiplied up and gradients divided down again."""

from __future__ import annotations

START = 2.0**16
GROWTH_INTERVAL = 2000  # good steps before a larger scale is tried, as in torch.amp.GradScaler
BACKOFF = 4.0


class LossScale:
    """A power of two that grows while gradients stay finite. A step that overflows is done again with a smaller one.

    No example is lost to an overflow, and the scale is part of the engine's state, so that a resume goes on with it.
    """

    def __init__(self) -> None:
        self.value = START
        self.proven = START  # the scale of the last good step
        self.good_steps = 0

    def note_finite(self) -> None:
        self.proven, self.good_steps = self.value, self.good_steps + 1
        if self.good_steps >= GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0

    def note_overflow(self) -> bool:
        """True: try the step again. False: even unscaled gradients are not finite, so the scale was not to blame."""
        self.good_steps = 0
        if self.value <= 1:
            self.value = self.proven
            return False
        self.value = max(1.0, self.value / BACKOFF)
        return True

    def state(self) -> list[float]:
        return [self.value, self.proven, float(self.good_steps)]

    def load(self, state: list[float]) -> None:
        self.value, self.proven, self.good_steps = state[0], state[1], int(state[2])

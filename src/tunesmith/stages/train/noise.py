"""The gradient noise scale: how many examples a step needs before more of them stop helping.

    B_simple = tr(Sigma) / |G|^2     McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", section 2.2

Sigma is the covariance of the gradient of one unit of weight (a learned token), G the true gradient. Both are estimated
without bias from a step's micro-batches: with g the step's gradient, g_i that of micro-batch i over its own weight w_i,
W = sum w_i and k micro-batches,

    E |g|^2 = |G|^2 + tr(Sigma) / W        E sum (w_i/W) |g_i|^2 = |G|^2 + k tr(Sigma) / W

so both follow from the two sums. Single steps are noisy: numerator and denominator are averaged apart over steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.9  # of the running means: about the last ten steps


class GradientNoise:
    """Norms of the micro-batches' own gradients, while they add up as they would have otherwise, bit for bit.

    parameters: those that get gradients. Holds their gradients once more. found: (sum of w_i/W |g_i|^2, micro-batches) of
    the last step, of this process.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.found = (0.0, 0)
        self.begin()

    def begin(self) -> None:
        """Before the first micro-batch of a step."""
        self.sums: list[Tensor | None] = [None] * len(self.parameters)
        self.weighted_squares: Tensor | None = None  # sum of W/w_i |contribution_i|^2 = sum w_i/W |g_i|^2
        self.num_parts = 0

    def take(self, share: float, loss_scale: float = 1.0) -> None:
        """After `backward` of a micro-batch. share: its weight over the step's, w_i / W."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients and share > 0:
            square = (torch.nn.utils.get_total_norm(gradients).float() / loss_scale).square() / share
            self.weighted_squares = square if self.weighted_squares is None else self.weighted_squares + square
            self.num_parts += 1
        for place, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                held = self.sums[place]
                self.sums[place] = parameter.grad if held is None else held.add_(parameter.grad)
                parameter.grad = None

    def put_back(self) -> None:
        """After the last one: the summed gradients stand where they belong."""
        for parameter, held in zip(self.parameters, self.sums, strict=True):
            parameter.grad = held
        self.sums = [None] * len(self.parameters)
        squares = 0.0 if self.weighted_squares is None else float(self.weighted_squares)
        self.found = squares, self.num_parts


def estimate(weighted_squares: float, num_parts: int, norm: float, weight: float) -> tuple[float, float] | None:
    """(tr(Sigma), |G|^2) of one step, per unit of weight; None below two micro-batches. Both may come out negative."""
    if num_parts < 2:
        return None
    square = norm * norm
    trace = (weighted_squares - square) * weight / (num_parts - 1)
    signal = (num_parts * square - weighted_squares) / (num_parts - 1)
    return trace, signal


def note(means: list[float], found: tuple[float, float]) -> list[float]:
    """Running means of both, with their summed weight for the start: [trace, signal, mass]."""
    old = means or [0.0, 0.0, 0.0]
    new = (*found, 1.0)
    return [DECAY * before + (1 - DECAY) * now for before, now in zip(old, new, strict=True)]


def scale(means: list[float]) -> float | None:
    """B_simple in units of weight; None as long as the signal drowns in noise."""
    trace, signal, _ = means
    return trace / signal if trace > 0 and signal > 0 else None

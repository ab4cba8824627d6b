"""Two callbacks. In a recipe:

    train:
      callbacks: [watch_loss.py:StopOnSpike, watch_loss.py:note_best]

    tunesmith run recipe.yaml --allow-code

A callback gets plain facts: facts.moment ("step", "validation", "save", "end"), facts.step, facts.num_steps,
facts.values (what the events of that moment say, by name), facts.is_best, facts.path.
"""

import json
from pathlib import Path

FACTOR, PATIENCE = 2.0, 3


class StopOnSpike:
    """Ends training when the loss has been twice its best running mean for three steps in a row."""

    def __init__(self):
        self.mean = self.best = None
        self.above = 0

    def on_step(self, facts):
        loss = facts.values["loss"]
        self.mean = loss if self.mean is None else 0.9 * self.mean + 0.1 * loss
        self.best = self.mean if self.best is None else min(self.best, self.mean)
        self.above = self.above + 1 if loss > FACTOR * self.best else 0
        return "stop" if self.above >= PATIENCE else None

    # These two travel in the checkpoints, so that a resumed run stops where a straight one would.
    def state(self):
        return {"mean": self.mean, "best": self.best, "above": self.above}

    def load_state(self, state):
        self.mean, self.best, self.above = state["mean"], state["best"], state["above"]


def note_best(facts):
    """Adds a line to best.jsonl beside this file whenever a validation finds better weights."""
    if facts.moment == "validation" and facts.is_best:
        with Path(__file__).with_name("best.jsonl").open("a") as file:
            file.write(json.dumps({"step": facts.step, **facts.values}) + "\n")

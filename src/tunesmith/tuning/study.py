"""The trials of a search in storage that all its workers share. The only door to optuna.

Beside what optuna keeps (values drawn, state, losses by share of the steps) a trial carries attributes of ours:
    owner, workspace   who works on it, and whose checkpoints it has; owner is empty when it was stopped and saved
    alive              seconds since 1970 of its owner's last sign of life
    run, why, seconds, steps, num_steps, reused
    uncounted          why it takes no place in the budget
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import FileError, UsageError
from tunesmith.recipe import Recipe
from tunesmith.tuning.objective import Objective
from tunesmith.tuning.space import Choices, Drawn, Space

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 6  # drawn at random before TPE has anything to learn from
LOCK_TIMEOUT_S = 60
MIN_FOR_IMPORTANCE = 6

State = Literal["complete", "pruned", "failed", "running", "waiting"]


@dataclass(frozen=True)
class Trial:
    """One trial as it stands. value: of the objective, None before the end. curve: thousandths of the steps -> loss."""

    number: int
    state: State
    value: float | None
    drawn: Drawn
    curve: dict[int, float]
    attributes: dict[str, Any]
    is_whole: bool  # every value of the space is drawn

    @property
    def counts(self) -> bool:
        """Whether it takes a place in the budget."""
        return "uncounted" not in self.attributes

    def get(self, name: str, otherwise: Any = None) -> Any:
        return self.attributes.get(name, otherwise)


@dataclass
class Study:
    """The trials of one search. url: of a database that SQLAlchemy knows; name: equal for all workers of the search."""

    url: str
    name: str
    space: Space
    objective: Objective
    spec: Recipe
    _handles: dict[int, optuna.trial.Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sqlite = self.url.startswith("sqlite")
        with _explained(self.url):
            self._storage = _storage(self.url, {"connect_args": {"timeout": LOCK_TIMEOUT_S}} if sqlite else {})
            self._study = optuna.create_study(
                study_name=self.name,
                storage=self._storage,
                sampler=_seeded_sampler(self.spec.tune.sampler, self.spec.tune.seed),
                pruner=optuna.pruners.NopPruner(),
                direction=self.objective.direction,
                load_if_exists=True,
            )

    @property
    def _sign(self) -> int:
        """Losses are stored so that better is where the objective is better: optuna ranks pruned trials by them."""
        return 1 if self.objective.direction == "minimize" else -1

    # ------------------------------------------------------------------------------------------------------- reading

    def trials(self) -> list[Trial]:
        with _explained(self.url):
            return [self._trial(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def trial(self, number: int) -> Trial:
        return self.trials()[number]

    def _trial(self, frozen: optuna.trial.FrozenTrial) -> Trial:
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        return Trial(
            frozen.number,
            state.get(frozen.state.name, "waiting"),  # type: ignore[arg-type]
            frozen.value if frozen.state.name == "COMPLETE" else None,
            dict(frozen.params),
            {share: self._sign * value for share, value in frozen.intermediate_values.items()},
            {**frozen.user_attrs, "started": frozen.datetime_start.timestamp() if frozen.datetime_start else None},
            set(frozen.params) == set(self.space),
        )

    def best(self) -> Trial | None:
        """The complete trial with the best value, the first of equals."""
        complete = [trial for trial in self.trials() if trial.state == "complete" and trial.counts]
        sign = 1 if self.objective.direction == "minimize" else -1
        return min(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def importance(self) -> dict[str, float]:
        """Share of each key in what makes a trial good (PED-ANOVA over complete trials); {} where they are too few."""
        optuna = _optuna()
        trials = [trial for trial in self.trials() if trial.state == "complete"]
        varied = [key for key in self.space if len({trial.drawn[key] for trial in trials}) > 1]
        if len(trials) < MIN_FOR_IMPORTANCE or not varied:
            return {}
        with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):  # nothing to be told apart
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(
                self._study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=varied
            )
            return {key: float(value) for key, value in found.items() if math.isfinite(value)}
        return {}

    # ------------------------------------------------------------------------------------------------------- drawing

    def suggest(self, point: Drawn) -> None:
        """The next trial takes these values."""
        with _explained(self.url):
            self._study.enqueue_trial(dict(point))

    def draw(self, **attributes: Any) -> Trial:
        """A new trial with its values; what is drawn follows from the seed, its number, and the trials before."""
        with _explained(self.url):
            handle = self._study.ask()
            for name, value in attributes.items():
                handle.set_user_attr(name, value)
            return self._fill(handle)

    def take_up(self, number: int, **attributes: Any) -> Trial:
        """A running trial that nobody works on any more, as this worker's own; values not drawn yet are drawn now."""
        optuna = _optuna()
        with _explained(self.url):
            frozen = self._study.get_trials(deepcopy=False)[number]
            handle = optuna.trial.Trial(self._study, frozen._trial_id)
            for name, value in attributes.items():
                handle.set_user_attr(name, value)
            return self._fill(handle)

    def _fill(self, handle: optuna.trial.Trial) -> Trial:
        for key, dimension in self.space.items():
            if isinstance(dimension, Choices):
                handle.suggest_categorical(key, dimension.texts)
            elif dimension.whole:
                handle.suggest_int(key, int(dimension.low), int(dimension.high), log=dimension.log)
            else:
                handle.suggest_float(key, dimension.low, dimension.high, log=dimension.log)
        self._handles[handle.number] = handle
        return self.trial(handle.number)

    # ------------------------------------------------------------------------------------------------------- telling

    def note(self, number: int, **attributes: Any) -> None:
        """Attributes of a trial that this worker drew or took up; nothing when another worker has ended it as lost."""
        with _explained(self.url), contextlib.suppress(_finished_error()):
            for name, value in attributes.items():
                self._handles[number].set_user_attr(name, value)

    def report(self, number: int, share: int, loss: float) -> list[Trial]:
        """A validation loss at a share of the steps; one that is known already (a step done again) changes nothing.

        Returns all trials as they stand after it.
        """
        with _explained(self.url), contextlib.suppress(_finished_error()):
            if share not in self._study.get_trials(deepcopy=False)[number].intermediate_values:
                self._handles[number].report(self._sign * loss, share)
        return self.trials()

    def end(self, number: int, state: Literal["complete", "pruned", "failed"], value: float | None = None) -> None:
        """The end of a trial. Of one that another worker has ended meanwhile nothing changes."""
        states = _optuna().trial.TrialState
        told = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        with _explained(self.url):
            self._study.tell(number, value, state=told, skip_if_finished=True)

    def end_lost(self, number: int, why: str, **attributes: Any) -> None:
        """Ends a trial as failed that another worker began and nobody will go on with."""
        with _explained(self.url):
            frozen = self._study.get_trials(deepcopy=False)[number]
            for name, value in {**attributes, "why": why}.items():
                self._storage.set_trial_user_attr(frozen._trial_id, name, value)
            self.end(number, "failed")

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()


# ------------------------------------------------------------------------------------------------------------- optuna


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "TUN-010",
            "a search needs optuna, which is not installed",
            expected="optuna >= 4",
            fix="pip install 'tunesmith[tune]'",
        ) from error
    return optuna


def _finished_error() -> type[Exception]:
    """What optuna raises when a trial that has ended is written to; before 4.3 it had no name of its own."""
    return getattr(_optuna().exceptions, "UpdateFinishedTrialError", RuntimeError)


def _storage(url: str, options: Mapping[str, Any]) -> Any:
    """Two processes that make the tables at the same moment stumble over each other once."""
    from sqlalchemy.exc import OperationalError

    optuna = _optuna()
    for _ in range(3):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=dict(options))
        except OperationalError as error:
            if "already exists" not in str(error):
                raise
            time.sleep(0.5)
    return optuna.storages.RDBStorage(url, engine_kwargs=dict(options))


def _seeded_sampler(kind: str, seed: int) -> Any:
    """A sampler whose state begins anew with each trial, so that a search that was killed draws what it would have drawn."""
    samplers = _optuna().samplers

    def make(number: int) -> Any:
        digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
        own = int.from_bytes(digest[:4], "little")
        if kind == "random":
            return samplers.RandomSampler(seed=own)
        return samplers.TPESampler(seed=own, n_startup_trials=STARTUP_TRIALS)

    class PerTrial(samplers.BaseSampler):  # type: ignore[misc, name-defined]
        inner = make(0)

        def before_trial(self, study: Any, trial: Any) -> None:
            self.inner = make(trial.number)
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self.inner.after_trial(study, trial, state, values)

    return PerTrial()


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """What the database answers, as an error that a person can act on. Raises FileError TUN-011, UsageError TUN-012."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    optuna = _optuna()
    try:
        yield
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UsageError(
            "TUN-012",
            f"the storage {hide_password(url)} cannot be opened: {_first_line(error)}",
            where="--storage",
            expected="sqlite:///FILE, postgresql://USER@HOST/NAME or mysql://USER@HOST/NAME, and its driver installed",
            fix="check the URL, or install the driver that the message names (psycopg for PostgreSQL, mysqlclient for MySQL)",
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise FileError(
            "TUN-011",
            f"the storage {hide_password(url)} does not answer: {_first_line(error)}",
            where="--storage",
            expected="a database that can be read and written",
            fix="check the database, then run the same command again: the search goes on",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def hide_password(url: str) -> str:
    """postgresql://me:secret@host/db -> postgresql://me:***@host/db"""
    head, mark, rest = url.partition("://")
    account, at, place = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    return f"{head}{mark}{user}{':***' if colon else ''}{at}{place}" if at else url

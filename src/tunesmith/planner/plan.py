"""The plan: choices that fit, and figures with the band they should fall into."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import ModelError
from tunesmith.planner import attention, disk, memory, speed
from tunesmith.planner.activations import WIDTH, Pass
from tunesmith.planner.figures import Figure
from tunesmith.planner.hardware import Hardware
from tunesmith.planner.learned import Learned, recall
from tunesmith.planner.memory import Job
from tunesmith.planner.ranges import Unusual, unusual
from tunesmith.planner.requirements import refuse_unmet
from tunesmith.planner.shapes import Shape
from tunesmith.planner.switches import Switch, switches
from tunesmith.recipe import Full, Lora, Recipe
from tunesmith.recipe.tree import Nf4
from tunesmith.units import format_bytes

BEFORE_DATA = "before data"  # the basis of a plan that knows no rows
CPU_SHARE, GPU_RESERVE = 0.8, 0.92
TYPICAL_LEARNED_SHARE = 0.4  # of a row's tokens, before the data was read
SHORTEST_ADVISED = 64  # tokens
SIZES = (64, 32, 16, 8, 4, 2, 1)  # of a micro-batch, tried in this order


@dataclass(frozen=True)
class Plan:
    """figures by name; choices: micro_batch, gradient_checkpointing, precision, attention. notes: why, in sentences.

    basis: before data | after prepare. pace: by what factor the times were corrected, and how many trainings told it.
    unusual: values out of their usual range; warnings, never refusals. switches: what makes it faster, and why it stands as
    it does. room: bytes that each process may take of this machine's memory, or of its GPU's.
    """

    figures: dict[str, Figure]
    choices: dict[str, Any]
    hardware: Hardware
    basis: str
    pace: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    unusual: tuple[Unusual, ...] = ()
    switches: tuple[Switch, ...] = ()
    room: float = 0.0

    @property
    def fits(self) -> Literal["yes", "unless high"]:
        """A plan that is there fits; "unless high" where the upper end of the peak's band is more than the room."""
        return "yes" if self.figures["peak_memory"].high <= self.room else "unless high"

    def to_json(self) -> dict[str, Any]:
        return {
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "choices": self.choices,
            "hardware": self.hardware.to_json(),
            "room": self.room,
            "fits": self.fits,
            "basis": self.basis,
            "pace": self.pace,
            "notes": self.notes,
            "unusual": [item.to_json() for item in self.unusual],
            "switches": [switch.to_json() for switch in self.switches],
        }

    def to_text(self) -> str:
        lines = [f"plan ({self.basis})", "", self._memory_line(), ""]
        lines += [
            f"  {name.replace('_', ' '):<24} {figure.text()}{'   ' + figure.note if figure.note else ''}"
            for name, figure in self.figures.items()
        ]
        lines += ["", "choices", *(f"  {name.replace('_', ' '):<24} {value}" for name, value in self.choices.items())]
        lines += ["", "speed", *(f"  {one.name:<24} {one.state:<10} {one.why}" for one in self.switches)]
        if self.basis == BEFORE_DATA:
            lines += [
                "",
                "steps and times: asked again after `tunesmith prepare`, the plan has them; `tunesmith check` estimates them",
            ]
        lines += ["", *self.notes] if self.notes else []
        lines += ["", *(f"warning: {item}" for item in self.unusual)] if self.unusual else []
        return "\n".join(lines)

    def _memory_line(self) -> str:
        """What this machine has, and whether the plan fits into it."""
        has, peak = self.hardware, self.figures["peak_memory"]
        if has.gpus:
            there = f"{has.gpus[0].name}: {format_bytes(has.gpus[0].memory_bytes)}"
        else:
            there = f"memory: {format_bytes(has.ram_bytes)}, {format_bytes(has.ram_available_bytes)} of it free"
        answer = f"{format_bytes(peak.value)} fits"
        if self.fits == "unless high":
            answer += f", but not the upper end of its band, {format_bytes(peak.high)}"
        return f"{there}; a process may take {format_bytes(self.room)}: {answer}"


def plan(
    spec: Recipe,
    config: Mapping[str, Any],
    *,
    statistics: Mapping[str, Any] | None,
    hardware: Hardware,
    workspace: Path | None = None,
) -> Plan:
    """Arithmetic from the recipe, the model's config.json and, once it is prepared, the data's statistics.

    workspace: where earlier trainings noted how fast this machine is.
    Raises ModelError PLN-002 when nothing fits, with what to change, before any weight is loaded; MDL-120 to 122 for
    what a quantised base or an 8-bit optimizer lacks.
    """
    refuse_unmet(spec, config, has_cuda=bool(hardware.gpus))
    case = _Case(spec, Shape.of(config), statistics, hardware)
    micro_batch, recompute = _fit(case)
    job = case.job(micro_batch, recompute)
    moment, parts = memory.peak(job)
    below, above = memory.band(job)
    where = "growth after imports" if case.on_cpu else "reserved on the GPU"

    def banded(value: float, note: str = "") -> Figure:
        return Figure(value, value / (1 + below), value * (1 + above), "bytes", note)

    figures = {"peak_memory": banded(parts.total, f"{where}; highest at: {moment}")}
    figures |= {name: banded(value) for name, value in asdict(parts).items() if value}
    machine = speed.machine(hardware, speed.threads_of(spec, hardware), case.precision)
    learned = recall(workspace, machine) if workspace else Learned()
    if statistics is not None:
        figures |= speed.figures(spec, statistics, hardware, job, learned)
    figures |= disk.figures(spec, case.shape, case.precision, statistics)
    kind = case.attention_class(machine)
    timed = attention.recall(workspace, kind) if workspace else {}
    told = switches(spec, job, kind, timed, recompute=recompute)
    choices = {
        "micro_batch": micro_batch,
        "gradient_checkpointing": recompute,
        "precision": case.precision,
        "attention": told[0].state,
    }
    if spec.model.quantisation.type != "none":
        choices["base_weights"] = f"{spec.model.quantisation.type}, frozen"
    basis = BEFORE_DATA if statistics is None else "after prepare"
    pace = {"machine": machine, "factor": learned.factor, "runs": learned.runs}
    notes = [
        *_notes(case, micro_batch, recompute),
        *([speed.basis(learned, machine)] if statistics is not None else []),
    ]
    return Plan(figures, choices, hardware, basis, pace, notes, tuple(unusual(spec, config)), told, case.room)


@dataclass(frozen=True)
class _Case:
    """What is to be planned, with everything derived from it once."""

    spec: Recipe
    shape: Shape
    statistics: Mapping[str, Any] | None
    hardware: Hardware

    def with_spec(self, spec: Recipe) -> _Case:
        return replace(self, spec=spec)

    @property
    def on_cpu(self) -> bool:
        return not self.hardware.gpus

    @property
    def room(self) -> float:
        """Bytes that training may take."""
        if self.on_cpu:
            return self.hardware.ram_available_bytes * CPU_SHARE / self.spec.train.processes
        return self.hardware.gpus[0].memory_bytes * GPU_RESERVE

    @property
    def precision(self) -> str:
        asked = self.spec.model.precision
        if asked != "auto":
            return asked
        if self.on_cpu:
            return "fp32"
        return "bf16" if self.hardware.gpus[0].capability >= 8.0 else "fp16"

    @property
    def batch_size(self) -> int:
        """Examples of a step that one process takes."""
        return -(-self.spec.train.batch_size // self.spec.train.processes)

    def job(self, micro_batch: int, recompute: bool) -> Job:
        spec, shape = self.spec, self.shape
        longest, learned_share, stored_tokens = self._rows()
        micro_batch = min(micro_batch, self.batch_size)
        lora = spec.adapter if isinstance(spec.adapter, Lora) else None
        eager = spec.model.attention == "eager" or not shape.family.has_fused_attention
        # Packed micro-batches are filled to the same number of tokens as rows of the longest length would have.
        packed = spec.train.packing == "auto" and not eager and shape.family.packs and not self._is_windowed(longest)
        tokens = micro_batch * longest
        if packed and self.statistics is not None:
            tokens = max(
                longest, min(tokens, math.ceil(_step_tokens(self.statistics["splits"]["train"], self.batch_size)))
            )
        step = Pass(
            shape,
            frozenset(lora.targets) if lora else None,
            lora.rank if lora else 0,
            self.precision,
            "eager" if eager else "fused",
            "packed" if packed else "rows",
            recompute,
            tokens,
            longest,
            math.ceil(tokens * learned_share),
        )
        return Job(
            step,
            memory.weight_bytes(spec, shape, WIDTH[self.precision]),
            shape.trainable(spec),
            memory.state_width(spec.train.optimizer),
            spec.train.processes,
            accumulates=micro_batch < self.batch_size,
            data_bytes=4.0 * stored_tokens,
            on_cpu=self.on_cpu,
            shards=memory.shards(spec),
            chunk=memory.chunk(spec, shape, on_cpu=self.on_cpu),
        )

    def attention_class(self, machine: str) -> attention.AttentionClass:
        longest, _, _ = self._rows()
        capability = 0.0 if self.on_cpu else self.hardware.gpus[0].capability
        return attention.attention_class(
            self.spec, self.shape, longest,
            machine=machine, on_cpu=self.on_cpu, precision=self.precision, capability=capability,
        )  # fmt: skip

    def _rows(self) -> tuple[int, float, int]:
        """Tokens of the longest training row, the share of tokens that are learned, tokens of all rows."""
        if self.statistics is None:
            return self.spec.data.max_tokens, TYPICAL_LEARNED_SHARE, 0
        splits = self.statistics["splits"]
        train = splits["train"]
        longest = max(1, min(self.spec.data.max_tokens, train["max"]))
        share = train["learned_tokens"] / max(1, train["tokens"])
        return longest, share, sum(part["tokens"] for part in splits.values())

    def _is_windowed(self, longest: int) -> bool:
        return self.shape.sliding_window is not None and self.shape.sliding_window < longest


def _step_tokens(train: Mapping[str, Any], batch_size: int) -> float:
    """Tokens of a step with many tokens: lengths add up as draws do, and one step in fifteen is above this."""
    mean = train["tokens"] / max(1, disk.num_examples(train))
    spread = max(0.0, train.get("p90", train["max"]) - train.get("p50", mean)) / 1.28  # of a normal distribution
    return batch_size * mean + 1.5 * spread * math.sqrt(batch_size)


def _fit(case: _Case) -> tuple[int, bool]:
    """The largest micro-batch that fits, without recomputation where any does.

    Raises ModelError PLN-002 with what would fit.
    """
    found = _first_that_fits(case)
    if found:
        return found
    sizes, ways = _choices(case)
    moment, least = memory.peak(case.job(sizes[-1], ways[-1]))
    biggest = max(asdict(least).items(), key=lambda part: part[1])
    raise ModelError(
        "PLN-002",
        f"training needs about {format_bytes(least.total)} and {format_bytes(case.room)} are there "
        f"(highest at: {moment}; {biggest[0]}: {format_bytes(biggest[1])})",
        where="model.base",
        expected="a plan that fits into memory",
        fix="; or ".join(_ways_out(case)),
    )


def _choices(case: _Case) -> tuple[list[int], tuple[bool, ...]]:
    asked = case.spec.train.micro_batch
    sizes = [min(asked, case.batch_size)] if asked != "auto" else [s for s in SIZES if s <= case.batch_size]
    return sizes, {"auto": (False, True), "on": (True,), "off": (False,)}[case.spec.train.gradient_checkpointing]


def _first_that_fits(case: _Case) -> tuple[int, bool] | None:
    sizes, ways = _choices(case)
    for recompute in ways:
        for size in sizes:
            if memory.peak(case.job(size, recompute))[1].total <= case.room:
                return size, recompute
    return None


def _ways_out(case: _Case) -> Iterator[str]:
    """Changes that make it fit, each alone, with what it would then take; where none is enough, as many as are needed."""
    changes = list(_changes(case.spec))
    alone = [(name, case.with_spec(change(case.spec))) for name, change in changes]
    enough = [
        (name, other, found) for name, other in alone if _is_allowed(other) and (found := _first_that_fits(other))
    ]
    for name, other, found in enough:
        yield f"{name} (takes {format_bytes(memory.peak(other.job(*found))[1].total)})"
    if enough:
        return
    names, other = [], case
    for name, change in changes:
        names.append(name)
        other = case.with_spec(change(other.spec))
        found = _first_that_fits(other)
        if found:
            yield f"together: {', '.join(names)} (takes {format_bytes(memory.peak(other.job(*found))[1].total)})"
            return
    yield "a smaller model.base, or a machine with more memory"


def _changes(spec: Recipe) -> Iterator[tuple[str, Callable[[Recipe], Recipe]]]:
    """What a recipe may still give up, the least first."""
    if spec.train.micro_batch != "auto":
        yield "train.micro_batch: auto", lambda spec: _changed(spec, "train", micro_batch="auto")
    if spec.train.gradient_checkpointing == "off":
        yield (
            "train.gradient_checkpointing: auto",
            lambda spec: _changed(spec, "train", gradient_checkpointing="auto"),
        )
    if isinstance(spec.adapter, Full):
        yield "adapter: lora", lambda spec: spec.model_copy(update={"adapter": Lora()})
    if spec.model.quantisation.type == "none":  # of no use without an adapter, which comes before it
        yield "model.quantisation: nf4", lambda spec: _changed(spec, "model", quantisation=Nf4())
    shorter = spec.data.max_tokens // 2
    if shorter >= SHORTEST_ADVISED:
        yield f"data.max_tokens: {shorter}", lambda spec: _changed(spec, "data", max_tokens=shorter)


def _is_allowed(case: _Case) -> bool:
    """Only a frozen base is quantised."""
    return case.spec.model.quantisation.type == "none" or isinstance(case.spec.adapter, Lora)


def _changed(spec: Recipe, section: str, **values: Any) -> Recipe:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=values)})


def _notes(case: _Case, micro_batch: int, recompute: bool) -> Iterator[str]:
    """What was chosen because more does not fit, and what the arithmetic does not know."""
    sizes, ways = _choices(case)
    room = format_bytes(case.room)
    if micro_batch != sizes[0]:
        need = format_bytes(memory.peak(case.job(sizes[0], recompute))[1].total)
        yield f"micro_batch {sizes[0]} would take {need} of {room}: {micro_batch} fits"
    if recompute and False in ways:
        need = format_bytes(memory.peak(case.job(sizes[-1], False))[1].total)
        yield f"without recomputation micro_batch {sizes[-1]} would take {need} of {room}: activations are computed again"
    if not case.shape.is_known:
        yield f"{case.shape.model_type or 'this architecture'} is planned as if it were Llama: the bands are twice as wide"

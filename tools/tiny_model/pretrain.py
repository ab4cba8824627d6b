"""Pretrain `tunesmith-tiny` on the generated corpus, on a CPU, in the time given.

    python tools/tiny_model/pretrain.py --out DIR --minutes 60 --threads 2 --seed 1

Writes a complete transformers folder (bf16 weights) and `pretrain_log.jsonl`: one line on the run, one per report.
Documents are made while training: fresh ones for every step, about one per cent of a step's time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import document
from tokenizer import END, MAX_POSITIONS, SPECIAL_TOKENS, pieces, train_tokenizer
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Shape suffixes: B rows, T tokens.
PROMPT_WEIGHT = 0.2  # invented entities in prompts cannot be predicted; their loss is mostly noise
CHUNK = 512  # documents packed together


@dataclass(frozen=True)
class Budget:
    """The end of a run and the shape of a step; `steps` wins over `minutes`."""

    minutes: float = 60.0
    steps: int | None = None
    batch: int = 16
    length: int = 256
    learning_rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.35

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, 0 to 1."""
        return step / self.steps if self.steps else seconds / (60 * self.minutes)

    def rate(self, step: int, progress: float) -> float:
        """Warm-up, plateau, then a linear fall to 2 % over the last `decay` of the run."""
        falling = max(0.02, min(1.0, (1 - progress) / self.decay))
        return min(1.0, (step + 1) / self.warmup) * falling


def encode(
    tokenizer: PreTrainedTokenizerFast, seed: int, start: int, count: int
) -> list[tuple[list[int], list[float], str]]:
    """Documents start..start+count as (token ids, loss weight per token, kind)."""
    documents = [document(seed, index) for index in range(start, start + count)]
    flat = [piece for one in documents for piece in pieces(one)]
    encoded = iter(tokenizer([text for text, _ in flat], add_special_tokens=False)["input_ids"])
    out = []
    for one in documents:
        ids, weights = [], []
        for _, is_answer in pieces(one):
            part = next(encoded)
            ids += part
            weights += [1.0 if is_answer else PROMPT_WEIGHT] * len(part)
        out.append((ids, weights, one.kind))
    return out


def pack(documents: list, length: int, rng: random.Random) -> list[list]:
    """Rows of at most `length` tokens that cut no document (first fit, longest first)."""
    rows, room = [], []
    for one in sorted(documents, key=lambda d: -len(d[0])):
        size = len(one[0])
        if size > length:
            continue
        at = next((i for i, left in enumerate(room) if left >= size), None)
        if at is None:
            rows.append([])
            room.append(length)
            at = len(rows) - 1
        rows[at].append(one)
        room[at] -= size
    for row in rows:
        rng.shuffle(row)
    rng.shuffle(rows)
    return rows


def to_tensors(rows: list[list], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """ids_BT (int64) and weights_BT (float32, 0 on padding)."""
    ids_BT = torch.full((len(rows), length), pad, dtype=torch.long)
    weights_BT = torch.zeros(len(rows), length)
    for b, row in enumerate(rows):
        ids = [token for one in row for token in one[0]]
        ids_BT[b, : len(ids)] = torch.tensor(ids)
        weights_BT[b, : len(ids)] = torch.tensor([weight for one in row for weight in one[1]])
    return ids_BT, weights_BT


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, budget: Budget) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of fresh documents."""
    rng, rows, start = random.Random(seed), [], 0
    while True:
        while len(rows) < budget.batch:
            rows += pack(encode(tokenizer, seed, start, CHUNK), budget.length, rng)
            start += CHUNK
        yield to_tensors(rows[: budget.batch], budget.length, tokenizer.pad_token_id)
        rows = rows[budget.batch :]


def build_model(
    tokenizer: PreTrainedTokenizerFast, layers: int = 5, hidden: int = 192, ffn: int = 512
) -> LlamaForCausalLM:
    """A Llama of 2.6 million parameters with fresh weights (from torch's global seed)."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    other = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers." in name)]
    adam = torch.optim.AdamW(other, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon = torch.optim.Muon(inside, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, adam]


def token_losses(model: LlamaForCausalLM, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each next token and whether it is the likeliest one; both [B, T-1]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    targets = ids_BT[:, 1:]
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return losses, logits.argmax(-1) == targets


@torch.no_grad()
def validate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, count: int) -> dict:
    """Mean answer loss on unseen documents, and the share of answers of each kind that are right in every token."""
    groups, loss, weight = defaultdict(list), 0.0, 0.0
    documents = [d for d in encode(tokenizer, seed, 0, count) if len(d[0]) <= MAX_POSITIONS]
    documents.sort(key=lambda d: len(d[0]))
    for at in range(0, len(documents), 64):
        part = documents[at : at + 64]
        ids_BT, weights_BT = to_tensors(
            [[one] for one in part], max(len(one[0]) for one in part), tokenizer.pad_token_id
        )
        answer_BT = weights_BT[:, 1:] == 1.0
        losses, right = token_losses(model, ids_BT)
        loss, weight = loss + (losses * answer_BT).sum().item(), weight + answer_BT.sum().item()
        for one, is_right in zip(part, (right | ~answer_BT).all(1).tolist(), strict=True):
            groups[one[2]].append(is_right)
    exact = {kind: round(sum(hits) / len(hits), 3) for kind, hits in sorted(groups.items())}
    return {"answer_loss": round(loss / weight, 4), "exact": exact}


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A complete folder: bf16 weights, config, tokenizer with its chat template, generation settings."""
    whole = LlamaForCausalLM(model.config)
    whole.load_state_dict(model.state_dict())
    whole.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=256,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
    )
    whole.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Written by hand, so that every reader understands it: the template inside tokenizer_config.json, the plain class
    # name, the long-lived key for special tokens.
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "pad_token": tokenizer.pad_token,
        "eos_token": tokenizer.eos_token,
        "additional_special_tokens": SPECIAL_TOKENS[1:4],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": tokenizer.chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)


def pretrain(
    out: Path,
    seed: int,
    budget: Budget,
    snapshot_minutes: float = 0.0,
    report_every: int = 100,
    validation: int = 600,
    tokenizer_documents: int = 60_000,
) -> dict:
    """Run it; returns the last line of the log."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(document(seed, index) for index in range(tokenizer_documents))
    model = build_model(tokenizer)
    optimizers = build_optimizers(model, budget.learning_rate)
    feed, started, saved = batches(tokenizer, seed, budget), time.monotonic(), 0
    with (out / "pretrain_log.jsonl").open("w") as log:
        line = _facts(model, seed, budget)
        step = tokens = recent = seen = 0
        while True:
            print(json.dumps(line), file=log, flush=True)
            while (progress := budget.progress(step, time.monotonic() - started)) < 1.0:
                factor = budget.rate(step, progress)
                for group in (group for one in optimizers for group in one.param_groups):
                    group["lr"] = budget.learning_rate * factor
                ids_BT, weights_BT = next(feed)
                losses, _ = token_losses(model, ids_BT)
                loss = (losses * weights_BT[:, 1:]).sum() / weights_BT[:, 1:].sum()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for one in optimizers:
                    one.step()
                    one.zero_grad()
                step, tokens, recent, seen = step + 1, tokens + ids_BT.numel(), recent + loss.item(), seen + 1
                if step % report_every == 0:
                    break
            seconds = time.monotonic() - started
            line = {
                "step": step,
                "seconds": round(seconds),
                "tokens": tokens,
                "loss": round(recent / max(1, seen), 4),
                "learning_rate": round(budget.learning_rate * factor, 6),
            }
            recent = seen = 0
            done = budget.progress(step, seconds) >= 1.0
            if done or step % (5 * report_every) == 0:
                line |= validate(model, tokenizer, seed + 1, validation)
            if snapshot_minutes and seconds > 60 * snapshot_minutes * (saved + 1):
                saved = int(seconds / 60 / snapshot_minutes)
                save(model, tokenizer, out / f"snapshot-{saved:02d}")
            if done:
                print(json.dumps(line), file=log, flush=True)
                break
    save(model, tokenizer, out)
    return line


def _facts(model: LlamaForCausalLM, seed: int, budget: Budget) -> dict:
    """The first line of the log: what ran, where, when."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "command": " ".join(["python", *sys.argv]),
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "budget": vars(budget),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and the log")
    parser.add_argument("--minutes", type=float, default=60.0, help="end after this time (default 60)")
    parser.add_argument("--steps", type=int, help="end after this many steps instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=Budget.learning_rate)
    parser.add_argument("--batch", type=int, default=Budget.batch, help="rows of 256 tokens per step")
    parser.add_argument(
        "--snapshot-minutes", type=float, default=0.0, help="also save a snapshot this often (0: never)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    budget = Budget(minutes=args.minutes, steps=args.steps, batch=args.batch, learning_rate=args.learning_rate)
    print(json.dumps(pretrain(args.out, args.seed, budget, args.snapshot_minutes)))


if __name__ == "__main__":
    main()

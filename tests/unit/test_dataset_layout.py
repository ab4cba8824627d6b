"""The Dataset on disk: what was added is read back; what is no Dataset is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import FileError
from tunesmith.runs.dataset import SPLITS, Dataset, DatasetWriter


def write(folder: Path, examples: list[tuple[list[int], list[list[float]], int, str]]) -> Dataset:
    folder.mkdir(exist_ok=True)
    writer = DatasetWriter(folder)
    for tokens, spans, row, split in examples:
        writer.add(np.array(tokens, np.int32), spans, row, split)
    items = [{"row": 1, "part": "test", "prompt_ids": [1]}, {"row": 2, "part": "other", "prompt_ids": [2]}]
    writer.close(items=items, samples=[[{"text": "hi", "learned": True}]], statistics={"tokens": 8})
    return Dataset(folder)


def test_examples_spans_rows_and_splits_are_read_back(tmp_path: Path) -> None:
    dataset = write(
        tmp_path / "d",
        [
            ([5, 6, 7, 8, 9], [[1, 3, 1.0], [4, 5, 0.5]], 3, "train"),
            ([1, 2, 3], [], 0, "test"),
            ([4], [[0, 1, 1]], 1, "train"),
        ],
    )
    ids, spans, weights = dataset.sequence(0)
    assert (ids.tolist(), spans.tolist(), weights.tolist()) == ([5, 6, 7, 8, 9], [[1, 3], [4, 5]], [1.0, 0.5])
    assert dataset.sequence(1)[1].shape == (0, 2)
    assert dataset.num_examples == 3
    assert dataset.split("train").tolist() == [0, 2]
    assert dataset.split("validation").tolist() == []
    assert [dataset.row(example) for example in range(3)] == [3, 0, 1]
    assert dataset.lengths().tolist() == [5, 3, 1]
    assert [item["row"] for item in dataset.items()] == [1, 2]
    assert [item["row"] for item in dataset.items("other")] == [2]
    assert dataset.samples[0][0]["learned"] is True
    assert dataset.statistics == {"tokens": 8}


def test_the_first_token_of_a_sequence_has_no_learned_weight(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", [([1, 2, 3], [[0, 3, 2.0]], 0, "train"), ([1, 2, 3], [[1, 2, 0.5]], 1, "train")])
    assert dataset.learned_weights().tolist() == [4.0, 0.5]


def test_an_empty_dataset_is_readable(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", [])
    assert dataset.num_examples == 0
    assert dataset.lengths().tolist() == dataset.learned_weights().tolist() == dataset.split("train").tolist() == []


examples = st.lists(
    st.integers(1, 9).flatmap(
        lambda size: st.tuples(
            st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size),
            st.lists(st.integers(0, size), max_size=6, unique=True).map(
                lambda cuts: [[a, b, 1.0] for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
            ),
            st.integers(0, 2**40),
            st.sampled_from(SPLITS),
        )
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples)
def test_any_examples_survive_the_disk(tmp_path: Path, examples: list[tuple[list[int], list, int, str]]) -> None:
    dataset = write(tmp_path / "d", examples)
    for number, (tokens, spans, row, split) in enumerate(examples):
        ids, found, weights = dataset.sequence(number)
        assert ids.tolist() == tokens
        assert [[*span, weight] for span, weight in zip(found.tolist(), weights.tolist(), strict=True)] == spans
        assert dataset.row(number) == row
        assert number in dataset.split(split)
    assert dataset.lengths().sum() == sum(len(tokens) for tokens, *_ in examples)


def test_arrays_are_plain_npy_files_that_numpy_reads_alone(tmp_path: Path) -> None:
    write(tmp_path / "d", [([5, 6], [[0, 2, 1.0]], 0, "train")])
    assert np.load(tmp_path / "d" / "tokens.npy", allow_pickle=False).tolist() == [5, 6]


def test_spans_outside_of_the_sequence_are_a_bug(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path)
    with pytest.raises(AssertionError, match="row 7: span 1:4 of 3 tokens"):
        writer.add(np.array([1, 2, 3]), [[1, 4, 1.0]], 7, "train")
    writer._tokens.close()


@pytest.mark.parametrize("damage", ["missing", "schema", "json"])
def test_what_is_no_dataset_is_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "d", [([1], [], 0, "train")])
    path = tmp_path / "d" / "dataset.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(json.dumps({"schema": 9}) if damage == "schema" else "{")
    with pytest.raises(FileError, match=r"RUN-007 .* is no Dataset that can be read"):
        Dataset(tmp_path / "d")


def test_an_array_that_was_cut_is_refused_by_name(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", [([1, 2, 3], [], 0, "train")])
    path = tmp_path / "d" / "sequences.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileError, match=r"RUN-007 .*sequences\.npy cannot be read"):
        dataset.sequence(0)

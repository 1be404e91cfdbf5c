"""What data sheets allow: by hand, and as the documents have it."""

from pathlib import Path

import pytest

from tsi.experiments.benchmarks.roofline import (
    CHIPS,
    QWEN_7B,
    Work,
    bound,
    max_rows,
    num_weights,
    position_bytes,
    table,
)

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "accelerators.md"


def test_the_shape_has_seven_billion_weights_and_57_kb_per_position():
    embedding = QWEN_7B.vocab_size * QWEN_7B.width
    assert num_weights(QWEN_7B) + embedding == pytest.approx(7.6e9, rel=0.01)
    assert position_bytes(QWEN_7B) == 57_344


def test_few_rows_wait_for_the_weights_and_many_for_products():
    chips, work = CHIPS[0], Work(past=0.0)
    few = bound(chips, QWEN_7B, work, 1)
    assert few.bound == "memory"
    assert few.token == pytest.approx(2 * num_weights(QWEN_7B) / 3.35e12)
    many = bound(chips, QWEN_7B, work, 4096)
    assert many.bound == "products"
    assert many.token == pytest.approx(4096 * 2 * num_weights(QWEN_7B) / 989e12)
    # Alone a chip has nobody to send to.
    assert few.written == pytest.approx(0.85 / (few.token + few.read))


def test_rows_that_fit_leave_room_for_both_models():
    for chips in CHIPS:
        work = Work()
        rows = max_rows(chips, QWEN_7B, work)
        held = 2 * 2 * (num_weights(QWEN_7B) + QWEN_7B.vocab_size * QWEN_7B.width)
        taken = held + 2 * rows * work.longest * position_bytes(QWEN_7B)
        assert rows > 0
        assert taken <= chips.size * chips.memory


def test_the_document_shows_what_the_command_prints():
    assert table() in DOCUMENT.read_text()

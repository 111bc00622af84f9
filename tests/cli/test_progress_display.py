from __future__ import annotations

from yolofleet.cli.progress import described, is_news


def test_counts_of_skipped_samples_are_no_step() -> None:
    assert not is_news({"step": 8, "skipped_image_damaged": 3})
    for row in ({"step": 8, "loss": 0.1}, {"step": 8, "val_AP": None}, {"problem": "the network is away"}):
        assert is_news(row) and described(row)

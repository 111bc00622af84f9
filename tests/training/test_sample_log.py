from __future__ import annotations

from pathlib import Path

from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.sample_log import (
    FOLDER,
    SampleLog,
    SkippedSamples,
    format_skips,
    read_skipped,
    remove_rows_from,
    skipped_document,
)


class Batch:
    """What a sample log looks at."""

    def __init__(self, step: int, index: int, skipped: list[tuple[str, str]]) -> None:
        self.step, self.index, self.skipped = step, index, skipped


def observed(folder: Path, rank: int, batches: list[Batch]) -> None:
    log = SampleLog(open_storage(folder), rank, record_digests=False)
    for batch in batches:
        log.observe(batch)  # type: ignore[arg-type]  # as much of a MicroBatch as it needs
    log.close()


def test_skips_are_summed_over_workers_and_starts(tmp_path: Path) -> None:
    damaged, unknown = ("b", "image_damaged"), ("a", "image_unknown")
    observed(tmp_path, 0, [Batch(0, 0, [damaged]), Batch(1, 0, []), Batch(2, 0, [damaged])])
    observed(tmp_path, 1, [Batch(0, 1, [unknown]), Batch(2, 1, [unknown, ("c", "image_unknown")])])
    found = SkippedSamples(open_storage(tmp_path))
    found.update()
    found.update()
    assert found.total == 5
    remove_rows_from(open_storage(tmp_path).child(FOLDER), 2)  # a start at step 2, now with one worker
    observed(tmp_path, 0, [Batch(2, 0, [damaged]), Batch(2, 1, [unknown, ("c", "image_unknown")])])
    again = SkippedSamples(open_storage(tmp_path))
    again.update()
    assert (
        again.document(24)
        == found.document(24)
        == {
            "skipped": 5,
            "seen": 24,
            "share": 5 / 24,
            "reasons": {
                "image_unknown": {"count": 3, "samples": 2, "keys": {"a": 2, "c": 1}},
                "image_damaged": {"count": 2, "samples": 1, "keys": {"b": 2}},
            },
        }
    )


def test_the_report_goes_to_the_run_directory_and_the_metrics(tmp_path: Path) -> None:
    observed(tmp_path, 0, [Batch(0, 0, [("a", "image_empty")])])
    skipped = SkippedSamples(open_storage(tmp_path))
    skipped.update()
    with RunDirectory(open_storage(tmp_path)) as run:
        skipped.write_report(run, step=1, num_seen=8)
        run.flush()
        assert run.metrics()[-1]["skipped_image_empty"] == 1
    assert read_skipped(open_storage(tmp_path)) == skipped.document(8)


def test_a_report_is_one_line_for_people(tmp_path: Path) -> None:
    assert format_skips(read_skipped(open_storage(tmp_path))) == "none"
    pairs = [(f"key-{number}", "image_damaged") for number in range(5)] + [("x", "sample_lost")]
    text = format_skips(skipped_document(pairs, 1200))
    assert text == ("6 of 1,200 (0.50%): image_damaged x 5 (key-0, key-1, key-2 and 2 more); sample_lost x 1 (x)")

"""What a fresh run decides once: anchors, initial weights, image weights, frozen blocks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from storage.https_server import Page, serve_https
from yolofleet.core.errors import UserError
from yolofleet.data.anchors import image_weights, survey_boxes
from yolofleet.models import build_model
from yolofleet.models.weights import official_parameter_names
from yolofleet.specs.data import CacheSpec
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_documents import read_document
from yolofleet.training.loop.out_of_memory import save_memory
from yolofleet.training.loop.update import MicroBatchStatistics, WeightAverage, group_parameters
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import freeze_blocks, open_dataset, trained_table
from yolofleet.training.setup.preflight import Readiness, check_job
from yolofleet.training.setup.preparation import (
    choose_anchors,
    run_deal,
    run_image_weights,
    run_table,
    table_anchors,
    with_anchors,
)
from yolofleet.training.setup.pretrained import load_initial, read_trained
from yolofleet.training.supervision.ray_workers import StoredError
from yolofleet.training.supervision.worker import run_in_process

MakeJob = Callable[..., JobSpec]
LONG = np.random.default_rng(0).lognormal(1.0, 0.3, (500, 2)) * (8.0, 1.0)


def trained(job: JobSpec) -> Readiness:
    ready = check_job(job)
    run_in_process(job)
    return ready


def checkpoint(ready: Readiness, file: str) -> dict[str, torch.Tensor]:
    step = max(int(path.name.partition("-")[2]) for path in Path(ready.run.url, "checkpoints").iterdir())
    return dict(safetensors.torch.load_file(Path(ready.run.url, f"checkpoints/step-{step}/{file}.safetensors")))


def narrow(job: JobSpec, num_classes: int, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    return build_model(trained_table(job), num_classes)


def test_anchors_are_kept_unless_they_reach_too_little() -> None:
    given = (((10.0, 13.0),), ((30.0, 61.0),))
    good = np.array([[11.0, 12.0], [28.0, 70.0]])
    options = {"image_size": 64, "ratio_limit": 4.0, "seed": 0}
    assert choose_anchors("auto", given, good, **options).anchors == given
    kept = choose_anchors("model", given, LONG, **options)
    assert (kept.source, kept.anchors) == ("model", given)
    assert "set anchors=auto" in kept.sentence()
    fitted = choose_anchors("auto", given, LONG, **options)
    assert fitted.source == "fitted"
    assert fitted.after.recall > max(0.98, fitted.before.recall)
    assert choose_anchors("fit", given, good, **options).source == "fitted"
    assert choose_anchors("fit", given, np.empty((0, 2)), **options).anchors == given


def test_anchors_of_a_table_are_replaced_whole(small_job: MakeJob) -> None:
    table = trained_table(small_job())
    assert with_anchors(table, table_anchors(table)) == table


def test_fit_anchors_are_in_the_report_the_checkpoint_and_the_next_start(small_job: MakeJob) -> None:
    job = small_job(anchors="fit", epochs=0.2)
    ready = trained(job)
    report = json.loads(Path(ready.run.url, "initial/anchors.json").read_text())
    assert report["source"] == "fitted"
    assert report["after"]["recall"] >= report["before"]["recall"] > 0
    assert any("fitted ones reach" in note for note in ready.notes)
    expected = torch.tensor(report["anchors"])
    assert not torch.equal(expected, build_model(trained_table(job), 3).anchors)
    assert torch.equal(checkpoint(ready, "weights")["anchors"], expected)
    assert torch.equal(build_model(run_table(job, ready.run), 3).anchors, expected)
    again = check_job(job)
    assert again.notes == ()
    assert run_table(job, again.run) == run_table(job, ready.run)
    assert ready.run.facts()["anchors"]["source"] == "fitted"


def test_the_default_keeps_the_model_s_anchors_and_says_what_they_reach(small_job: MakeJob) -> None:
    job = small_job()
    ready = check_job(job)
    assert run_table(job, ready.run) == trained_table(job)
    assert any(note.startswith("anchors: those of the model reach") for note in ready.notes)
    assert not any(note.startswith("few steps") for note in ready.notes)


def test_a_run_too_short_for_its_recipe_gets_a_note(small_job: MakeJob) -> None:
    ready = check_job(small_job(hyperparameters={}))
    (note,) = [note for note in ready.notes if note.startswith("few steps")]
    assert f"give {ready.num_steps} steps, and the recipe takes 1,000 for the warm-up alone" in note


def test_a_run_starts_from_another_run_s_best_average(small_job: MakeJob) -> None:
    first = trained(small_job(name="first", epochs=0.3))
    job = small_job(name="second", initial_weights=first.run.url, epochs=0.2, hyperparameters={"lr0": 1e-9})
    second = trained(job)
    average = checkpoint(first, "average")
    kept = dict(safetensors.torch.load_file(Path(second.run.url, "initial/model.safetensors")))
    assert kept.keys() == {name for name in average if name != "anchors"}
    assert all(torch.equal(tensor, average[name]) for name, tensor in kept.items())
    facts = second.run.facts()["initial_weights"]
    assert facts["tensors_taken"] == len(kept)
    assert facts["tensors_fresh"] == 0
    assert facts["source"] == first.run.url
    assert facts["parent"].startswith(first.run.url)
    weight = next(name for name in kept if name.endswith("conv.weight"))
    assert torch.allclose(checkpoint(second, "weights")[weight], average[weight], atol=1e-3)


def test_a_later_start_does_not_need_the_source(small_job: MakeJob, tmp_path: Path) -> None:
    source = tmp_path / "mine.safetensors"
    job = small_job(epochs=0.2, initial_weights=str(source))
    safetensors.torch.save_file(narrow(job, 3).state_dict(), source)
    check_job(job)
    source.unlink()
    run_in_process(job)
    assert check_job(job).finished


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_classes_take_all_but_the_last_layers(small_job: MakeJob, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"published{suffix}"
    job = small_job(initial_weights=str(source))
    other = narrow(job, 7)
    state = other.state_dict()
    if suffix == ".pt":
        published = {theirs: state[ours] for theirs, ours in official_parameter_names(other).items()}
        torch.save(published, source)
    else:
        safetensors.torch.save_file(state, source)
    ready = check_job(job)
    kept = safetensors.torch.load_file(Path(ready.run.url, "initial/model.safetensors"))
    expected = {name for name in state if not name.endswith("num_batches_tracked")} - {"anchors"}
    left = {name for name in expected if name.startswith(("head.lead.", "head.multiply."))}
    assert set(kept) == expected - left
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    note = next(note for note in ready.notes if note.startswith("initial weights"))
    assert f"{len(kept)} tensors" in note and "head.lead" in note


def test_known_classes_keep_their_last_layer_and_the_others_start_by_the_seed(
    small_job: MakeJob, tmp_path: Path
) -> None:
    source = tmp_path / "mine.safetensors"
    job = small_job(initial_weights=str(source), seed=5)
    names = [name for _, name in open_dataset(job.data, job.data.train).classes]
    other = narrow(job, 4)
    theirs = ["unheard of", names[2].upper(), "another", names[0]]
    safetensors.torch.save_file(other.state_dict(), source, {"names": json.dumps(theirs)})
    ready = check_job(job)
    assert any(
        f"the last layer is kept for 2 of 3 classes, by name: {names[0]}, {names[2]}" in line for line in ready.notes
    )
    assert ready.run.facts()["initial_weights"]["classes_known"] == 2
    torch.manual_seed(5)
    fresh = build_model(run_table(job, ready.run), 3).state_dict()
    torch.manual_seed(5)
    model = build_model(run_table(job, ready.run), 3)
    load_initial(ready.run.storage, model)
    for name, tensor in model.state_dict().items():
        if name.startswith(("head.lead.", "head.multiply.")):
            rows, given, random = (
                state[name].flatten(0, 1) if "multiply" in name else state[name]
                for state in (model.state_dict(), other.state_dict(), fresh)
            )
            rows, given, random = (value.unflatten(0, (3, -1)) for value in (rows, given, random))
            assert torch.equal(rows[:, :6], torch.cat((given[:, :5], given[:, 8:9]), 1))
            assert torch.equal(rows[:, 7], given[:, 6]) and torch.equal(rows[:, 6], random[:, 6])
        elif name.endswith("weight"):
            assert torch.equal(tensor, other.state_dict()[name])


def test_a_run_s_own_classes_are_known_by_name(small_job: MakeJob) -> None:
    first = trained(small_job(name="first", epochs=0.3))
    names = tuple(name for _, name in first.train.classes)
    assert read_trained(first.run.url).class_names == names
    ready = check_job(small_job(name="second", initial_weights=first.run.url))
    assert not any("by name" in line for line in ready.notes), "the same classes: the whole layer is taken"


def test_published_weights_of_eighty_classes_are_cocos(small_job: MakeJob, tmp_path: Path) -> None:
    source = tmp_path / "last.ckpt"
    job = small_job(initial_weights=str(source))
    other = narrow(job, 80)
    published = {theirs: other.state_dict()[ours] for theirs, ours in official_parameter_names(other).items()}
    torch.save({"state_dict": published, "epoch": 3}, source)
    weights = read_trained(str(source))
    assert weights.known_classes(other, ["Zebra", "cross", "traffic_light"]) == (22, -1, 9)


def test_a_digest_holds_for_any_file(small_job: MakeJob, tmp_path: Path) -> None:
    source = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(narrow(small_job(), 3).state_dict(), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert check_job(small_job(initial_weights=str(source), initial_weights_sha256=digest.upper())).notes
    with pytest.raises(UserError, match=rf"mine\.safetensors: its SHA-256 is {digest}, not 0000"):
        check_job(small_job(name="second", initial_weights=str(source), initial_weights_sha256="0" * 64))
    with pytest.raises(UserError, match="is the digest of a single file"):
        check_job(small_job(name="third", initial_weights=str(tmp_path), initial_weights_sha256=digest))


def test_weights_behind_a_url_are_fetched_once_and_kept_with_the_run(
    small_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "mine.pt"
    torch.save(narrow(small_job(), 3).state_dict(), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setenv("YOLOFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOFLEET_URL_HOSTS", "localhost")
    with serve_https(tmp_path / "tls") as server:
        monkeypatch.setenv("SSL_CERT_FILE", server.authority)
        server.pages["/mine.pt"] = Page(source.read_bytes())
        url = f"{server.url}/mine.pt?download=true"
        job = small_job(initial_weights=url, initial_weights_sha256=digest)
        ready = check_job(job)
        assert len(server.requests) == 1 and ready.run.facts()["initial_weights"]["source"] == url
    assert check_job(job).run.facts()["initial_weights"]["source"] == url  # no network is needed any more
    check_job(small_job(name="second", initial_weights=url, initial_weights_sha256=digest))
    with pytest.raises(UserError, match="is not a weights file; accepted are"):
        check_job(small_job(name="third", initial_weights="https://localhost/", initial_weights_sha256=digest))


def test_the_anchors_of_the_weights_come_with_them(small_job: MakeJob, tmp_path: Path) -> None:
    source = tmp_path / "mine.safetensors"
    job = small_job(initial_weights=str(source))
    other = narrow(job, 3)
    other.anchors.mul_(1.5)
    safetensors.torch.save_file(other.state_dict(), source)
    ready = check_job(job)
    assert torch.allclose(build_model(run_table(job, ready.run), 3).anchors, other.anchors)
    assert ready.run.facts()["anchors"]["source"] == "initial weights"


@pytest.mark.parametrize("form", ["anchor_grid", "anchors"])
def test_so_do_those_of_a_published_file(form: str, small_job: MakeJob, tmp_path: Path) -> None:
    # Published tiny weights were trained with other anchors than their configuration says.
    source = tmp_path / "published.pt"
    job = small_job(initial_weights=str(source))
    other = narrow(job, 3)
    published = {theirs: other.state_dict()[ours] for theirs, ours in official_parameter_names(other).items()}
    pixels = other.anchors * 1.25
    cells = pixels / torch.tensor(other.strides).view(-1, 1, 1)
    published[f"model.77.{form}"] = pixels.view(3, 1, 3, 1, 1, 2) if form == "anchor_grid" else cells
    torch.save(published, source)
    ready = check_job(job)
    assert torch.allclose(build_model(run_table(job, ready.run), 3).anchors, pixels)


def test_a_run_from_trained_weights_begins_at_its_own_first_step(small_job: MakeJob) -> None:
    first = trained(small_job(name="first", epochs=0.3))
    second = trained(small_job(name="second", initial_weights=first.run.url, epochs=0.2))
    assert [event["step"] for event in second.run.events() if event["kind"] == "start"] == [0]
    assert second.done_steps == 0


def test_weights_of_another_model_are_refused(small_job: MakeJob, tmp_path: Path) -> None:
    source = tmp_path / "other.safetensors"
    wide = small_job(model={"name": "yolov7-tiny", "transition_width": 0.5, "hidden_width": 0.5})
    safetensors.torch.save_file(narrow(wide, 3).state_dict(), source)
    with pytest.raises(UserError, match=r"other\.safetensors.*not weights of"):
        check_job(small_job(initial_weights=str(source)))


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("nothing.pt", "no such file"),
        ("empty", "neither checkpoints nor a detector package"),
        ("s3://[x/w.pt", r"s3://\[x/w\.pt: its host or port is wrong"),
        ("models:/mine@candidate", "only 'yolofleet train' reads the registry"),
    ],
)
def test_a_source_without_weights_is_refused(small_job: MakeJob, tmp_path: Path, source: str, part: str) -> None:
    (tmp_path / "empty").mkdir()
    named = source if ":/" in source else str(tmp_path / source)
    with pytest.raises(UserError, match=part):
        check_job(small_job(initial_weights=named))


def test_a_registered_version_is_found_through_the_registry(small_job: MakeJob, tmp_path: Path) -> None:
    job = small_job(initial_weights="models:/mine@candidate")
    (tmp_path / "package").mkdir()
    safetensors.torch.save_file(narrow(job, 3).state_dict(), tmp_path / "package/training.safetensors")
    ready = check_job(job, lambda uri: (tmp_path / "package", "models:/mine/4"))
    assert ready.run.facts()["initial_weights"]["parent"] == "models:/mine/4"
    assert ready.run.facts()["initial_weights"]["source"] == "models:/mine@candidate"


def test_a_package_without_training_form_is_refused_with_the_cure(small_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "detector.json").write_text('{"deployed": true}')
    with pytest.raises(UserError, match=r"deployed form only.*name the run directory"):
        check_job(small_job(initial_weights=str(tmp_path)))


@pytest.mark.parametrize(
    ("card", "part"),
    [
        ("{", r"detector\.json is not JSON"),
        ("[]", r"detector\.json is no JSON object, but \[\]"),
        ("[" * 100_000, r"detector\.json is not JSON"),
        (None, r"detector\.json: 100,000,000,000 bytes are too many"),
    ],
    ids=["cut off", "a list", "deep", "large"],
)
def test_a_card_that_is_none_is_refused_before_its_content_is_used(
    card: str | None, part: str, small_job: MakeJob, tmp_path: Path
) -> None:
    with (tmp_path / "detector.json").open("wb") as file:
        file.write((card or "").encode())
        file.truncate(10**11 if card is None else None)
    with pytest.raises(UserError, match=part):
        read_trained(str(tmp_path))


def test_image_weights_are_decided_once(small_job: MakeJob) -> None:
    job = small_job(hyperparameters={"image_weights": 0.5}, epochs=0.2)
    ready = trained(job)
    expected = image_weights(survey_boxes(ready.train), 3, 0.5)
    assert np.array_equal(run_image_weights(ready.run, len(expected)), expected)
    assert any(note.startswith("image weights") for note in ready.notes)


WEIGHTS = safetensors.torch.save({"weights": torch.tensor([1.0, float("nan")])})
HOSTILE_DECISIONS = [
    ("initial/anchors.json", b"[]"),
    ("initial/anchors.json", b"{}"),
    ("initial/anchors.json", b'{"anchors": [[[10, 13]], "x"]}'),
    ("initial/anchors.json", b'{"anchors": [[[10, -13]]]}'),
    ("initial/anchors.json", b'{"anchors": [[[10, 13]], [[30, 61]], [[1, 1e400]]]}'),
    ("initial/anchors.json", b'{"anchors": [[[10, 13]]]}'),
    ("initial/anchors.json", b'{"anchors": ' + b"[" * 100_000),
    ("initial/order.json", b'{"deal": "anew"}'),
    ("initial/order.json", b'{"order": "lanes"}'),
    ("initial/image_weights.safetensors", b"weights"),
    ("initial/image_weights.safetensors", WEIGHTS),
    ("initial/image_weights.safetensors", safetensors.torch.save({"other": torch.ones(2)})),
    ("failure.json", b'{"user_error": "yes", "message": 3}'),
    ("out_of_memory/least-1.json", b"{}"),
    ("out_of_memory/small-two.json", b"{}"),
    ("out_of_memory/small-1.json", b'{"kind": "end", "time": 3}'),
]


@pytest.mark.parametrize(("key", "data"), HOSTILE_DECISIONS, ids=range(len(HOSTILE_DECISIONS)))
def test_what_a_stranger_decided_for_a_run_is_checked_where_it_is_read(
    small_job: MakeJob, key: str, data: bytes
) -> None:
    ready = check_job(small_job())
    ready.run.storage.put(key, data)
    readers: dict[str, Callable[[], object]] = {
        "initial/anchors.json": lambda: run_table(small_job(), ready.run),
        "initial/order.json": lambda: run_deal(ready.run),
        "initial/image_weights.safetensors": lambda: run_image_weights(ready.run, 2),
        "failure.json": lambda: read_document(ready.run.storage, "failure.json", StoredError, "remove it"),
    }

    def save() -> None:
        save_memory(small_job(), ready.run, WorkerGroup(), build_model(trained_table(small_job()), 3))

    with pytest.raises(UserError, match=key):
        readers.get(key, save)()


def test_frozen_blocks_stay_as_they_were_and_the_others_learn(small_job: MakeJob) -> None:
    table = trained_table(small_job())
    names = list(build_model(table, 3).blocks)[:4]
    job = small_job(freeze=names, epochs=0.4, seed=3)
    ready = trained(job)
    torch.manual_seed(3)
    start = build_model(table, 3).state_dict()
    frozen = tuple(f"blocks.{name}." for name in names)
    for file in ("weights", "average"):
        for name, tensor in checkpoint(ready, file).items():
            if name.startswith(frozen):
                assert torch.equal(tensor, start[name]), name
    moved = [name for name, tensor in checkpoint(ready, "weights").items() if not torch.equal(tensor, start[name])]
    assert any(name.startswith("blocks.") for name in moved)
    assert any(name.startswith("head.") for name in moved)
    assert not [name for name in checkpoint(ready, "moments") if name.startswith(frozen)]


def test_neither_optimiser_nor_statistics_hold_frozen_blocks(small_job: MakeJob) -> None:
    model = build_model(trained_table(small_job()), 3).train()
    names = list(model.blocks)[:2]
    freeze_blocks(model, names)
    held = [name for members in group_parameters(model).values() for name, _ in members]
    assert held and not [name for name in held if name.startswith(tuple(f"blocks.{name}." for name in names))]
    before = model.blocks[names[0]].state_dict()
    statistics, average = MicroBatchStatistics(model), WeightAverage(model, small_job().resolved_hyperparameters())
    statistics.begin_step()
    model(torch.rand(2, 3, 64, 64))
    statistics.add_micro_batch()
    statistics.finish_step(1, accept=torch.tensor(True))
    average.update(1)
    for name, tensor in model.blocks[names[0]].state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_run_with_frozen_blocks_resumes(small_job: MakeJob) -> None:
    names = list(build_model(trained_table(small_job()), 3).blocks)[:2]
    job = small_job(freeze=names, epochs=0.3)
    ready = trained(job)
    assert not [name for name in checkpoint(ready, "weights") if name.endswith("num_batches_tracked")]
    assert run_in_process(job).step == ready.num_steps  # the checkpoint is read back


def test_what_cannot_start_claims_no_run_directory(small_job: MakeJob) -> None:
    for wrong in ({"freeze": ["nothing"]}, {"initial_weights": "nothing.pt"}):
        with pytest.raises(UserError):
            check_job(small_job(**wrong))
    assert check_job(small_job()).notes  # the same name starts with the spec put right


def test_an_unknown_block_is_refused_with_the_nearest(small_job: MakeJob) -> None:
    name = next(iter(build_model(trained_table(small_job()), 3).blocks))
    with pytest.raises(UserError, match=f"no block '{name}x'; did you mean '{name}'"):
        check_job(small_job(freeze=[f"{name}x"]))


def test_boxes_too_small_to_fit_keep_the_model_s_anchors_or_are_refused() -> None:
    given = (((10.0, 13.0),), ((30.0, 61.0),))
    kept = choose_anchors("auto", given, np.full((5, 2), 1.0), image_size=32, ratio_limit=4.0, seed=0)
    assert kept.anchors == given and kept.source == "model"
    with pytest.raises(UserError, match=r"2 pixels or more.*larger image size"):
        choose_anchors("fit", given, np.full((5, 2), 1.0), image_size=32, ratio_limit=4.0, seed=0)


def test_fewer_boxes_than_anchors_get_a_note() -> None:
    given = (((10.0, 13.0),), ((30.0, 61.0),))
    report = choose_anchors("fit", given, np.full((1, 2), 20.0), image_size=32, ratio_limit=4.0, seed=0)
    assert "fewer boxes than the 2 anchors" in report.sentence()


def test_another_source_is_not_read_again_and_the_change_says_so(small_job: MakeJob, tmp_path: Path) -> None:
    source = tmp_path / "mine.safetensors"
    job = small_job(initial_weights=str(source))
    safetensors.torch.save_file(narrow(job, 3).state_dict(), source)
    check_job(job)
    (change,) = check_job(small_job(initial_weights="elsewhere.pt")).changes
    assert "now elsewhere.pt" in change and "not read again" in change
    with pytest.raises(UserError, match=r"initial_weights: was .*mine\.safetensors, now not set"):
        check_job(small_job())


@pytest.mark.parametrize(("max_bytes", "deal"), [(1000, "fixed"), (10**9, "epoch")])
def test_the_deal_follows_from_the_cache_at_the_start_and_stays(
    small_job: MakeJob, tmp_path: Path, max_bytes: int, deal: str
) -> None:
    def with_cache(num_bytes: int) -> JobSpec:
        job = small_job()
        cache = CacheSpec(path=str(tmp_path / "cache"), max_bytes=num_bytes)
        return job.model_copy(update={"data": job.data.model_copy(update={"cache": cache})})

    assert run_deal(check_job(with_cache(max_bytes)).run) == deal
    assert run_deal(check_job(with_cache(10**9 + 1000 - max_bytes)).run) == deal, "another cache at a later start"


def test_the_job_can_set_the_deal_and_a_run_keeps_it(small_job: MakeJob) -> None:
    job = small_job()
    fixed = job.model_copy(update={"data": job.data.model_copy(update={"deal": "fixed"})})
    assert fixed.digest() != job.digest() and run_deal(check_job(fixed).run) == "fixed"
    with pytest.raises(UserError, match=r"data\.deal: was fixed, now not set"):
        check_job(job)


def test_a_run_of_another_order_is_refused_once_it_has_a_checkpoint(small_job: MakeJob) -> None:
    job = small_job(epochs=0.3)
    ready = check_job(job)
    Path(ready.run.url, "initial/order.json").unlink()
    assert run_deal(check_job(job).run) == "epoch", "nothing was trained yet: it is decided again"
    trained(job)
    Path(ready.run.url, "initial/order.json").unlink()
    assert check_job(job).finished, "nothing is left to train"
    last = max(Path(ready.run.url, "checkpoints").iterdir(), key=lambda path: int(path.name.partition("-")[2]))
    shutil.rmtree(last)
    assert any(Path(ready.run.url, "checkpoints").iterdir()), "an earlier one is left"
    with pytest.raises(UserError, match=r"sample order of an earlier version.*initial_weights="):
        check_job(job)

"""Foreign checkpoints: weights are found, and nothing in a file is ever run or resolved."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolofleet.models.checkpoint_reader import CheckpointError, open_checkpoint
from yolofleet.models.inert_pickle import Known, resolve
from yolofleet.models.weights import read_checkpoint


class RunsByReduce:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def by_build(command: str) -> bytes:
    """Builds an object whose state is set by a function of the attacker's choice."""
    return (
        b"\x80\x02cos\nsystem\n"
        + b"X"
        + len(command).to_bytes(4, "little")
        + command.encode()
        + b"\x85R}X\x01\x00\x00\x00aK\x01sb."
    )


def nested(command: str) -> bytes:
    """A pickle inside a pickle, loaded while the outer one is read."""
    inner = pickle.dumps(RunsByReduce(command))
    return b"\x80\x02cpickle\nloads\n" + b"B" + len(inner).to_bytes(4, "little") + inner + b"\x85R."


def broken_tail(command: str) -> bytes:
    """Runs first and breaks off afterwards."""
    return pickle.dumps([RunsByReduce(command), 1, 2], protocol=2)[:-3]


def renamed_module(command: str) -> bytes:
    """Reaches os.system by another module's name for it, dotted as protocol 4 allows."""
    text = b"\x8c" + bytes([len(command)]) + command.encode()
    return b"\x80\x04\x8c\x0ctorch._utils\x8c\x1a_rebuild_tensor_v2.os.syst\x93" + text + b"\x85R."


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "reduce": lambda command: pickle.dumps({"model": RunsByReduce(command), "weight": 1}),
    "build": by_build,
    "nested": nested,
    "broken tail": broken_tail,
    "renamed module": renamed_module,
    "posix": lambda command: b"cposix\nsystem\n" + f"(V{command}\ntR.".encode(),
    "eval": lambda command: b"cbuiltins\neval\n" + f"(V__import__('os').system('{command}')\ntR.".encode(),
    "instance": lambda command: f"(S'{command}'\nios\nsystem\n.".encode(),
    "new object": lambda command: b"\x80\x02csubprocess\nPopen\n" + f"(V{command}\nt\x81.".encode(),
}


def archived(path: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("wrapped", [True, False], ids=["archive", "bare pickle"])
def test_no_payload_runs(kind: str, wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "ran"
    data = HOSTILE[kind](f"touch {trace}")
    path = archived(tmp_path / "bad.pt", data) if wrapped else tmp_path / "bad.pt"
    if not wrapped:
        path.write_bytes(data)

    def never(*_: Any, **__: Any) -> None:
        trace.touch()

    monkeypatch.setattr(os, "system", never)
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["reduce", "build", "nested", "broken tail", "posix", "eval", "instance"])
def test_the_payloads_are_real(kind: str, tmp_path: Path) -> None:
    """Unpickled the ordinary way, they do run: the test above would see it."""
    trace = tmp_path / "ran"
    with contextlib.suppress(EOFError, pickle.UnpicklingError, AttributeError, TypeError):
        pickle.loads(HOSTILE[kind](f"touch {trace}"))
    assert trace.exists()


def test_only_tensor_storage_is_ever_resolved() -> None:
    answers = {
        name: resolve(*name)
        for name in [
            ("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.hub", "load"), ("torch.nn", "Module"),
            ("torch._utils", "_rebuild_tensor"), ("torch.serialization", "load"), ("numpy", "load"),
            ("torch", "FloatStorage.__class__"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ]
    }  # fmt: skip
    assert set(answers.values()) == {Known.FOREIGN}
    assert resolve("torch", "FloatStorage") is torch.float32
    assert resolve("torch._utils", "_rebuild_tensor_v2") is Known.TENSOR
    assert resolve("collections", "OrderedDict") is Known.DICTIONARY


def test_published_files_pickle_modules_and_are_read(tmp_path: Path) -> None:
    class Unknown(nn.Module):
        pass

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 3))).half()
    expected = {name: tensor.float() for name, tensor in model.state_dict().items()}
    path = tmp_path / "published.pt"
    torch.save({"model": model, "ema": None, "epoch": 3, "optimizer": None, "best_fitness": 0.5}, path)
    assert_equal_weights(read_checkpoint(path), expected)


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    model, average = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    torch.save({"model": model, "ema": average}, tmp_path / "both.pt")
    assert_equal_weights(read_checkpoint(tmp_path / "both.pt"), average.state_dict())


def test_state_dicts_and_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state}, tmp_path / "wrapped.pt")
    save_file(dict(state), tmp_path / "weights.safetensors")
    for name in ("plain.pt", "wrapped.pt", "weights.safetensors"):
        assert_equal_weights(read_checkpoint(tmp_path / name), state)


def assert_equal_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, check_dtype=False)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_file_is_refused(share: float, tmp_path: Path) -> None:
    data = saved({"weight": torch.rand(1000)})
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        read_checkpoint(path)


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    archived(tmp_path / "bomb.pt", b"\x80\x02" + b"]" * 2**20 + b".", compression=zipfile.ZIP_DEFLATED)
    torch.save({"epoch": 3}, tmp_path / "no_weights.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("empty.pt", "text.safetensors", "bomb.pt", "no_weights.pt", "other.pt", "absent.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)


def test_any_damage_is_read_or_refused_but_never_crashes(tmp_path: Path) -> None:
    data = saved({"model": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "epoch": 3})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(records[pickled])
        for _ in range(draw.randint(1, 5)):
            position = draw.randrange(len(damaged))
            damaged[position : position + draw.randint(0, 4)] = draw.randbytes(draw.randint(0, 4))
        with zipfile.ZipFile(tmp_path / "damaged.pt", "w") as archive:
            for name, content in records.items():
                archive.writestr(name, bytes(damaged) if name == pickled else content)
        try:
            read_checkpoint(tmp_path / "damaged.pt")
        except CheckpointError:
            refused += 1
    assert 0 < refused < 400


def test_a_tensor_cannot_claim_more_than_its_storage(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1).expand(10**6)}, tmp_path / "expanded.pt")
    with pytest.raises(CheckpointError, match="1,000,000 elements lies in a storage of 1"):
        read_checkpoint(tmp_path / "expanded.pt")


def named_module(names: Any) -> nn.Module:
    model = nn.Conv2d(1, 1, 1)
    model.names = names
    return model


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": named_module(["rbc", "wbc"]), "epoch": 1}, ("rbc", "wbc")),
        ({"ema": named_module({0: "rbc", 1: "wbc"})}, ("rbc", "wbc")),
        ({"state_dict": nn.Conv2d(1, 1, 1).state_dict(), "names": ["rbc"]}, ("rbc",)),
        ({"model": nn.Conv2d(1, 1, 1), "names": {"0": "rbc"}}, ("rbc",)),
        ({"model": nn.Conv2d(1, 1, 1)}, None),
        ({"model": named_module(["rbc", " "])}, None),
        ({"model": named_module({0: "rbc", 2: "wbc"})}, None),
        ({"model": named_module(["x" * 300])}, None),
        ({"model": named_module("rbc")}, None),
        ({"model": named_module([])}, None),
    ],
)
def test_class_names_are_found_where_there_are_whole_ones(content: Any, expected: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "named.pt")
    read = open_checkpoint(tmp_path / "named.pt")
    assert read.class_names == expected
    assert set(read.weights) == {"weight", "bias"}


@pytest.mark.parametrize(("metadata", "expected"), [('["rbc", "wbc"]', ("rbc", "wbc")), ("[", None), ("3", None)])
def test_safetensors_may_name_classes_in_their_metadata(metadata: str, expected: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(nn.Conv2d(1, 1, 1).state_dict(), tmp_path / "named.safetensors", {"names": metadata})
    assert open_checkpoint(tmp_path / "named.safetensors").class_names == expected


class Settings(dict):
    """As a trainer keeps its settings: an object of a class of its own."""


def test_a_training_state_of_lightning_is_read_and_nothing_else_of_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    state = {f"model.model.{name}": tensor for name, tensor in model.state_dict().items()}
    trace = tmp_path / "ran"
    content = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"EMA": {"decay": 0.99}, "hook": RunsByReduce(f"touch {trace}")},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 3}],
        "hparams_name": "cfg",
        "hyper_parameters": Settings(model="v7"),
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert_equal_weights(read_checkpoint(tmp_path / "last.ckpt"), state)
    assert not trace.exists()

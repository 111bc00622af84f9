"""Every command of the page about weights runs, with files of random weights on a server of this machine."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import pytest
import torch

from models.published_layouts import permissive, published
from storage.https_server import Page, serve_https
from system.pages import ROOT, shell_lines
from system.shell import Shell, write_job
from yolofleet.models import build_model

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3600)]
MODELS = {
    "yolov7.pt": "yolov7",
    "v7.pt": "yolov7",
    "yolov7-tiny.pt": "yolov7-tiny",
    "yolov7@candidate": "yolov7",
    "yolov7/1": "yolov7",
}
"""What a registered version, or the last part of another source, is trained as."""


def test_the_commands_of_the_page_work(drawn: Path, tmp_path: Path) -> None:
    write_job(tmp_path, drawn, cluster__workers=1, epochs=0.1, data__image_size=64)
    digests = {}
    for name, layout in (("yolov7.pt", published), ("v7.pt", permissive), ("yolov7-tiny.pt", published)):
        torch.save(layout(build_model(MODELS[name])), tmp_path / name)
        digests[name] = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    with serve_https(tmp_path / "tls") as server:
        server.pages |= {f"/{name}": Page((tmp_path / name).read_bytes()) for name in digests}
        shell = Shell(
            tmp_path,
            {
                "SSL_CERT_FILE": server.authority,
                "YOLOFLEET_URL_HOSTS": "localhost",
                "YOLOFLEET_CACHE": str(tmp_path / "cache"),
                "MLFLOW_TRACKING_URI": "sqlite:///runs/_mlflow/mlflow.db",
            },
        )
        shell.succeed("train", "job.yaml", "--launcher", "process")  # makes the store
        lines = shell_lines(ROOT / "docs" / "weights.md")
        assert len(lines) >= 6
        for number, line in enumerate(lines):
            words = shlex.split(line.text)[1:]
            source = next(word for word in words if word.startswith(("initial_weights=", "https://", "v7.pt")))
            name = source.removeprefix("initial_weights=")
            name = name.rpartition("/")[2] if "://" in name else name
            words = [word.replace("DIGEST", digests.get(name, "")) for word in words]
            words = [
                f"{word.partition('https://')[0]}{server.url}/{name}" if "https://" in word else word for word in words
            ]
            if words[0] == "train":
                words += [f"name=run-{number}", f"model={{name: {MODELS[name]}}}", "--launcher", "process"]
            shell.succeed(*words, timeout_seconds=1200)
        assert [request["path"] for request in server.requests] == ["/yolov7.pt", "/v7.pt", "/yolov7-tiny.pt"]

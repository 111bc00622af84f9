"""A secret of every shape in everything that takes a URL is found nowhere afterwards.

Fields come from walking the schemas, options from walking the commands, variables from the package's source: one that
is added later is covered without a change here, and fails where it lets a secret through.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import BaseModel

import yolofleet
from cluster.fake_jobs import fake_jobs
from system.test_canary import CANARY, check, holders
from yolofleet.cli.commands import app
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.core.redaction import holds_secret
from yolofleet.specs.base import Spec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.kubernetes import KubernetesSpec
from yolofleet.specs.model import DerivedTable
from yolofleet.specs.promotion import PromotionPolicy
from yolofleet.specs.search import SearchSpec
from yolofleet.storage import StorageError, open_storage
from yolofleet.tracking.mirror import sync_now
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_page import write_run_page

pytestmark = pytest.mark.system
HOST = "127.0.0.1:9"
SHAPES = (
    f"http://someone:{CANARY}@{HOST}/x",
    f"s3://someone:{CANARY}@data/train",
    f"http://{CANARY}@{HOST}",
    f"http://someone:a/{CANARY}@{HOST}",
    f"http://someone:a@b:{CANARY}@{HOST}",
    f"http://some one:a \"'{CANARY}@{HOST}",
    f"http://a {CANARY}@{HOST}",
    f"http://someone%3A{CANARY}%40{HOST}",
    f"someone:{CANARY}@{HOST}/x",
    f"postgresql+psycopg2://someone:12/{CANARY}@{HOST}/db",
    f"sqlite://someone:{CANARY}@{HOST}/db",
    f"mysql://{HOST}/db?password={CANARY}",
    f"http://{HOST}/x?a=1;Access_T%6Fken={CANARY}",
    f"s3://data/train?X-Amz-Signature={CANARY}",
    f"https://{HOST}/x?AWSAccessKeyId={CANARY}",
    f"http://{HOST}/#token={CANARY}",
    f"http:/someone:{CANARY}@{HOST}",
    f"//someone:{CANARY}@{HOST}",
)
JOB = {
    "name": "small",
    "model": {"name": "yolov7-tiny"},
    "data": {"train": "s3://data/train", "val": "s3://data/val"},
    "storage": "s3://runs",
}
DOCUMENTS: dict[type[Spec], dict[str, Any]] = {
    JobSpec: JOB,
    SearchSpec: {"name": "s", "job": JOB, "parameters": {"model.depth": {"choice": [1.0]}}, "budget": {"trials": 1}},
    KubernetesSpec: {"images": {"cpu": "registry/yolofleet:1"}},
    PromotionPolicy: {},
    DerivedTable: {"name": "mine", "base": "yolov7-tiny"},
}


def fragments(annotation: Any, leaf: Any) -> Iterator[tuple[str, Any]]:
    """Yield the path and the shape of everything that an annotation lets hold a text, with the leaf as that text."""
    inner = [argument for argument in get_args(annotation) if argument is not type(None)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            for path, value in fragments(field.annotation, leaf):
                yield f"{name}.{path}".rstrip("."), {name: value}
    elif get_origin(annotation) in (list, tuple):
        yield from ((path, [value]) for path, value in fragments(inner[0], leaf))
    elif get_origin(annotation) is dict:
        yield "", {leaf: 1}
        yield from ((f"entry.{path}".rstrip("."), {"entry": value}) for path, value in fragments(inner[1], leaf))
    elif annotation in (str, Any):
        yield "", leaf
    else:
        for argument in inner:
            if not isinstance(argument, str | int):  # a choice of fixed values takes no text
                yield from fragments(argument, leaf)


def merged(document: Any, fragment: Any) -> Any:
    if not isinstance(document, dict) or not isinstance(fragment, dict):
        return fragment
    return document | {key: merged(document.get(key), value) for key, value in fragment.items()}


def test_the_shapes_are_secrets_and_the_walk_finds_the_fields() -> None:
    assert all(map(holds_secret, SHAPES))
    found = {path for path, _ in fragments(JobSpec, "x")}
    assert {"storage", "data.train", "data.cache.path", "tracking.uri", "model.spec", "hyperparameters.entry"} <= found
    assert {"environment.entry", "images.cuda"} <= {path for path, _ in fragments(KubernetesSpec, "x")}


@pytest.mark.parametrize("spec", DOCUMENTS, ids=lambda spec: spec.__name__)
def test_every_field_of_a_spec_refuses_a_secret_of_every_shape(spec: type[Spec]) -> None:
    assert spec.parse(DOCUMENTS[spec], source="spec.yaml")
    for shape in SHAPES:
        for path, fragment in fragments(spec, shape):
            with pytest.raises(UserError) as refused:
                spec.parse(merged(DOCUMENTS[spec], fragment), source="spec.yaml")
            message, field = str(refused.value), path.partition(".")[0]
            assert message.startswith((f"spec.yaml: {field}", "spec.yaml: row 0", "spec.yaml: a key of")), message
            assert len(message.splitlines()) == 1
            check([str(refused.value)])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in an empty folder and looks for the canary in its output; returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        captured = capfd.readouterr()
        check([captured.out + captured.err])
        return code, captured.out + captured.err

    yield run
    assert holders(tmp_path) == []


def test_commands_refuse_specs_with_a_secret(
    runs: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("specs")  # which holds the canary, as it was given
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    shapes = itertools.cycle(SHAPES)
    for spec, commands in {
        JobSpec: (["submit"], ["train"], ["cluster", "render"], ["cluster", "plan"], ["cluster", "doctor"]),
        SearchSpec: (["submit"], ["tune", "--plan"], ["cluster", "render"]),
        KubernetesSpec: (["cluster", "render", str(folder / "job.yaml"), "--kubernetes"],),
        PromotionPolicy: (["registry", "promote", "x", "--version", "1", "--policy"],),
    }.items():
        found = list(fragments(spec, next(shapes)))
        for number, (path, fragment) in enumerate(found):
            (folder / "spec.yaml").write_text(yaml.safe_dump(merged(DOCUMENTS[spec], fragment)))
            code, printed = runs(*commands[number % len(commands)], str(folder / "spec.yaml"))
            assert code == 2 and printed.startswith("error:") and path.partition(".")[0] in printed, printed
    for path, shape in zip(("tracking.uri", "storage", "epochs", "model.spec", "nothing"), shapes, strict=False):
        code, printed = runs("submit", str(folder / "job.yaml"), f"{path}={shape}")
        assert code == 2 and path in printed


def parameters(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield the path of each command, the command, and each of its parameters that takes a value."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from parameters(inner, (*path, name))
    for parameter in () if hasattr(command, "commands") else command.params:
        if not getattr(parameter, "is_flag", False):
            yield path, command, parameter


def arguments_with(command: Any, wanted: Any, value: str) -> Iterator[str]:
    """Yield a value for one parameter and for those that the command needs, files that do not exist."""
    for parameter in command.params:
        if parameter is wanted or parameter.required:
            if parameter.param_type_name == "option":
                yield parameter.opts[0]
            yield value if parameter is wanted else "3" if parameter.name == "version" else "nowhere.yaml"


def test_every_option_and_argument_of_every_command(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://{HOST}")
    found = list(parameters(typer.main.get_command(app)))
    assert len(found) > 60
    assert {"tracking_uri", "address", "storage"} & {parameter.name for _, _, parameter in found}
    shapes = itertools.cycle(SHAPES)
    for path, command, parameter in found:
        for _ in range(2):
            code, printed = runs(*path, *arguments_with(command, parameter, next(shapes)))
            assert code in (1, 2) and printed and "Traceback" not in printed, (path, parameter.name, printed)


WELL_KNOWN = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")
"""Variables that get every shape; the others take turns."""


def variables() -> list[str]:
    """The variables that name an address, as the package's source names them, and those that its libraries read."""
    source = "".join(path.read_text() for path in Path(yolofleet.__file__).parent.rglob("*.py"))
    named = re.findall(r'"([A-Z][A-Z_0-9]*_(?:URI|URL|URL_S3|ADDRESS))"', source)
    return sorted({*named, "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "AWS_ENDPOINT_URL_S3"})


def test_every_variable_that_names_an_address(runs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {*WELL_KNOWN, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} <= set(variables())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "x")
    shapes = itertools.cycle(SHAPES)
    for name in itertools.chain(*([name] * (len(SHAPES) if name in WELL_KNOWN else 3) for name in variables())):
        shape = next(shapes)
        with monkeypatch.context() as patch:
            patch.setenv(name, shape)
            commands = [["registry", "list"]] if name.startswith("MLFLOW") else []
            commands += [["jobs", "list"]] if name == "RAY_API_SERVER_ADDRESS" else []
            commands += [["cluster", "doctor"]] if name.startswith("RAY") else []
            for command in commands:
                assert runs(*command)[0] in (1, 2)
            if name.startswith("AWS") or name.lower().endswith("proxy"):
                patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9") if "AWS" not in name else None
                with pytest.raises(StorageError) as failed:
                    open_storage("s3://data/train", patience_seconds=0).get("manifest.json")
                link: BaseException | None = failed.value
                while link is not None:
                    check([str(link)])
                    link = link.__cause__


def test_a_job_that_is_sent_carries_only_what_is_a_models_table(
    runs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("home")
    files = {
        "credentials": f"[default]\naws_access_key_id = AKIA\naws_secret_access_key = {CANARY}\n",
        "config.yaml": f"users:\n- name: me\n  user:\n    token: {CANARY}\n",
        "secret.yaml": f"password: {CANARY}\n",
        "id_rsa": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n",
        "binary": f"\0\xff{CANARY}",
        "noted.yaml": f"# http://me:{CANARY}@host\nname: mine\nbase: yolov7-tiny\n",
        "secret-base.yaml": "name: mine\nbase: ./secret.yaml\n",
    }
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    with fake_jobs() as jobs:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", jobs.address)
        (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
        for name in files:
            for command in ("submit",), ("cluster", "render"):
                arguments = ("kubernetes.images.cpu=r/y:1", "tracking.uri=http://mlflow:5000")
                extra = arguments if command[0] == "cluster" else arguments[1:]
                code, printed = runs(*command, str(folder / "job.yaml"), f"model={{spec: {folder / name}}}", *extra)
                assert code == 2 and ("secret.yaml" if "secret" in name else name) in printed, printed
                assert printed.startswith("error:") and (command[0] == "cluster" or "model.spec" in printed), printed
        check(jobs.texts())
        assert not jobs.requests


def test_what_a_run_keeps_and_mlflow_gets(tmp_path: Path) -> None:
    told = [f"no answer from {shape}" for shape in SHAPES if " " not in shape]
    with RunDirectory.open(tmp_path / "runs", "small") as run:
        run.write_job(yaml.safe_dump(JOB | {"tracking": {"experiment": told[0]}}).replace(CANARY, "x"))
        for text in told:
            run.append_event("failed", reason=text, details=[{text: {"why": text}}])
        run.record_facts(data=[told], problem=told[0])
        write_run_page(run)
        sync_now(run, f"sqlite:///{tmp_path}/mlflow.db", "shapes")
    assert len(list(tmp_path.rglob("*"))) > 8 and holders(tmp_path) == []
    check([repr(UserError(text)) for text in told] + [json.dumps(run.facts())])

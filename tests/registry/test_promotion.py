"""The gates of a promotion, each with a version that passes and one that does not, and the commands around them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.evaluation.bootstrap import Difference, Differences
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model
from yolofleet.registry.claims import Claim
from yolofleet.registry.evaluation_record import ClassRecord, EvaluationRecord, EvaluationSettings
from yolofleet.registry.promotion import champion_gate, class_gate, latency_gate, lineage_gate, proof_gate
from yolofleet.registry.proof import Latency
from yolofleet.registry.verify import Verification
from yolofleet.registry.versions import Version
from yolofleet.specs.promotion import AgainstChampion, ClassFloors, LatencyCeiling, PromotionPolicy, ProofGate
from yolofleet.specs.yaml_document import parse_yaml

pytestmark = pytest.mark.system

GOOD = Verification(
    Version("shapes", 2),
    (Claim("proof", "passed", ""), Claim("data manifests", "passed", "")),
    latency=Latency(milliseconds=10.0, image_size=64, device="cpu", num_threads=1),
    trained_on="a" * 64,
)


def with_claim(name: str, outcome: Any) -> Verification:
    return replace(GOOD, claims=(*GOOD.claims, Claim(name, outcome, "seen")))


def test_the_proof_gate_lets_only_named_claims_be_impossible() -> None:
    policy = ProofGate()
    assert proof_gate(policy, GOOD).passed
    assert proof_gate(policy, with_claim("package versions", "not possible")).passed
    assert not proof_gate(policy, with_claim("package versions", "failed")).passed
    closed = proof_gate(policy, with_claim("AP", "not possible"))
    assert not closed.passed and "AP not possible: seen" in closed.detail
    assert proof_gate(ProofGate(may_be_impossible=("AP",)), with_claim("AP", "not possible")).passed


def test_the_lineage_gate_wants_the_manifest_of_the_training_data() -> None:
    assert lineage_gate(GOOD).passed
    tagged = Version("shapes", 2, facts={"data.train": "a" * 64})  # by anybody
    assert "not in the version" in lineage_gate(replace(GOOD, version=tagged, trained_on=None)).detail
    assert "not in the version" in lineage_gate(replace(GOOD, claims=GOOD.claims[:1])).detail
    damaged = replace(GOOD, claims=(Claim("data manifests", "failed", "damaged"),))
    assert not lineage_gate(damaged).passed


@pytest.mark.parametrize(
    ("low", "high", "largest_drop", "passed"),
    [(0.01, 0.03, 0.0, True), (-0.005, 0.03, 0.01, True), (-0.02, 0.03, 0.01, False), (-0.1, -0.05, 0.01, False)],
)
def test_the_interval_decides_about_the_drop(low: float, high: float, largest_drop: float, passed: bool) -> None:
    middle = (low + high) / 2
    entry = Difference(name="AP", first=0.5, second=0.5 + middle, difference=middle, low=low, high=high)
    found = Differences(figures=(entry,), per_class=(), num_images=40, num_replicates=100, confidence=0.95)
    gate = champion_gate(AgainstChampion(largest_drop=largest_drop), found, "models:/shapes/1")
    assert gate.passed is passed and "over 40 images" in gate.detail and "models:/shapes/1" in gate.detail
    nothing = replace(
        found, figures=(Difference(name="AP", first=None, second=None, difference=None, low=None, high=None),)
    )
    assert not champion_gate(AgainstChampion(), nothing, "x").passed


def test_classes_have_floors_of_their_own() -> None:
    record = EvaluationRecord(
        data="d", manifest_sha256="0" * 64, settings=EvaluationSettings(image_size=64), device="cpu", num_images=3,
        figures={"AP": 0.5},
        classes=(
            ClassRecord(id=1, name="cat", num_objects=3, ap=0.4),
            ClassRecord(id=2, name="dog", num_objects=3, ap=0.2),
            ClassRecord(id=3, name="elk", num_objects=0),
        ),
    )  # fmt: skip
    assert class_gate(ClassFloors(every=0.2), record).passed
    assert class_gate(ClassFloors(every=0.3, classes={"dog": 0.1}), record).passed
    assert "dog has AP 0.2000" in class_gate(ClassFloors(every=0.3), record).detail
    assert "elk has no object" in class_gate(ClassFloors(classes={"elk": 0.1}), record).detail
    assert "no class 'cow'" in class_gate(ClassFloors(classes={"cow": 0.1}), record).detail
    assert not class_gate(ClassFloors(every=0.1), None).passed


def test_latency_has_a_ceiling() -> None:
    assert latency_gate(LatencyCeiling(milliseconds=10), GOOD).passed
    assert "allowed are 9" in latency_gate(LatencyCeiling(milliseconds=9), GOOD).detail
    assert not latency_gate(LatencyCeiling(milliseconds=9), replace(GOOD, latency=None)).passed


def test_a_policy_is_strict() -> None:
    assert PromotionPolicy.parse({}, source="policy") == PromotionPolicy()
    null = PromotionPolicy.parse({"proof": None, "against_champion": None, "lineage": False}, source="policy")
    assert null.proof is None and null.against_champion is None
    for document, complaint in (
        ({"against_champion": {"largest_drop": 2}}, "largest_drop"),
        ({"against_champion": {"figure": "mAP"}}, "not one of"),
        ({"class_floor": {}}, "did you mean 'class_floors'"),
        ({"latency": {"milliseconds": 0}}, "milliseconds"),
    ):
        with pytest.raises(UserError, match=complaint):
            PromotionPolicy.parse(document, source="policy")


def test_the_documented_policy_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()
    document = parse_yaml(page.split("```yaml\n")[1].split("```")[0], source="docs/registry.md")
    policy = PromotionPolicy.parse(document, source="docs/registry.md")
    assert policy.proof == PromotionPolicy().proof and policy.latency is not None


def test_from_the_first_champion_to_a_rollback(
    registered_store: Path, trained_package: Path, known_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(registered_store / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["registry", *arguments, "--tracking-uri", uri])
        return code, capsys.readouterr().out

    card = Detector.load(trained_package).card
    worse = build_model(card.model, num_classes=len(card.classes), deployed=True)
    for weights in worse.head.parameters():
        weights.data.zero_()
    save_detector(tmp_path / "worse", worse, [(entry.id, entry.name) for entry in card.classes], card.image_size)
    assert run("register", str(tmp_path / "worse"), "--name", "shapes", "--data", str(known_data))[0] == 0

    assert run("promote", "shapes", "--version", "1", "--dry-run")[0] == 0
    assert run("history", "shapes") == (0, "")
    code, out = run("promote", "shapes", "--version", "1", "--reason", "the first")
    assert code == 0 and "models:/shapes/1 is @champion now" in out and "CLOSED" not in out
    assert run("promote", "shapes", "--version", "1")[0] == 2
    around_the_gates = run("register", str(tmp_path / "worse"), "--name", "shapes", "--alias", "champion")
    assert around_the_gates[0] == 2

    code, out = run("promote", "shapes", "--version", "2", "--json")
    document = json.loads(out)
    closed = {gate["name"]: gate["detail"] for gate in document["gates"] if not gate["passed"]}
    assert code == 1 and not document["promoted"] and set(closed) == {"lineage", "against champion"}
    assert "worse" in closed["against champion"] and document["champion"] == "models:/shapes/1"
    (tmp_path / "policy.yaml").write_text("against_champion: {largest_drop: 1.0}\nlineage: false\n")
    assert run("promote", "shapes", "--version", "2", "--policy", str(tmp_path / "policy.yaml"), "--dry-run")[0] == 0

    assert run("promote", "shapes", "--version", "2", "--force")[0] == 2
    code, out = run("promote", "shapes", "--version", "2", "--force", "--reason", "a test")
    assert code == 0 and "in spite of closed gates, version 1 was" in out
    code, out = run("rollback", "shapes", "--reason", "it was worse")
    assert code == 0 and "models:/shapes/1 is @champion again, version 2 was" in out
    code, out = run("history", "shapes")
    lines = out.splitlines()
    assert len(lines) == 3 and "version 1 (rollback, after version 2)" in lines[0] and "it was worse" in lines[0]
    assert "version 2 (promote, gates overruled, after version 1)" in lines[1] and "a test" in lines[1]
    assert "version 1 (promote, the first)" in lines[2]
    document = json.loads(run("show", "shapes@champion-previous", "--json")[1])
    assert document["version"] == 2
    assert run("rollback", "shapes", "--alias", "nobody")[0] == 2
    assert run("promote", "shapes", "--version", "9")[0] == 2
    assert run("promote", "shapes", "--version", "2", "--to", "v1")[0] == 2

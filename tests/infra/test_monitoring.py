"""Dashboard, alerts and scraping without Prometheus: well formed, and about figures that the code publishes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from infra.promql import metrics_of
from infra.source_texts import texts_of_the_package
from yolofleet.cluster.manifest_pods import METRICS_PORT, PORTS, ROLE_LABEL, labels
from yolofleet.training.metrics.publisher import METRICS

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
RUNBOOK = ROOT / "docs" / "operations.md"
TROUBLESHOOTING = RUNBOOK.with_name("troubleshooting.md")
Document = dict[str, Any]


def dashboard() -> Document:
    document: Document = json.loads((MONITORING / "dashboard.json").read_text())
    return document


def rules() -> list[Document]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    assert len({group["name"] for group in groups}) == len(groups)
    return [rule for group in groups for rule in group["rules"]]


def dashboard_expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def rays_own() -> set[str]:
    """The metrics of nodes that Ray's agent publishes, and whether a target answers at all."""
    agent = Path(ray.__file__).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    return {f"ray_{name}" for name in re.findall(r'"(node_\w+)": Gauge\(', agent.read_text())} | {"up"}


def test_what_is_queried_exists_and_what_exists_is_queried() -> None:
    expressions = [*dashboard_expressions(), *(rule["expr"] for rule in rules())]
    queried = set().union(*(metrics_of(expression) for expression in expressions))
    ours = {f"ray_{name}" for name in METRICS}
    assert queried - ours <= rays_own()
    assert ours <= queried, "a figure that nobody looks at"


def test_labels_that_are_asked_for_are_published() -> None:
    published = {f"ray_{name}": {"run", *tags} for name, (_, tags) in METRICS.items()}
    for expression in [*dashboard_expressions(), *(rule["expr"] for rule in rules())]:
        grouped = {tag for tags in re.findall(r"\bby \(([\w, ]+)\)", expression) for tag in tags.split(", ")}
        known = [published[name] for name in metrics_of(expression) if name in published]
        if known:
            assert grouped and all(grouped <= tags for tags in known), expression


def test_the_dashboard_is_whole() -> None:
    document = dashboard()
    assert document["schemaVersion"] >= 36 and document["uid"] and document["title"]
    assert {entry["name"] for entry in document["templating"]["list"]} == {"datasource", "run"}
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"] and panel["type"] in ("stat", "timeseries")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, lines = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
        taken = {(column, line) for column in columns for line in lines}
        assert not cells & taken, f"{panel['title']} lies over another"
        cells |= taken
        for target in panel["targets"]:
            assert "$run" in target["expr"] or "ray_yolofleet" not in target["expr"], panel["title"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_happened_and_where_its_cure_is(rule: Document) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
    assert re.search(r"(==|>=|<|>) [\d.]+$", rule["expr"]), "an alert compares with a limit"
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0m"))
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    told = rule["annotations"]
    assert told["summary"].count("{{") == told["summary"].count("}}") > 0
    page, _, section = told["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert section in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_two_alerts_have_one_name_and_the_runbook_names_all() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    page = RUNBOOK.read_text()
    assert [name for name in names if f"`{name}`" not in page] == []
    assert [name for name in METRICS if f"`{name}`" not in page] == []
    assert set(re.findall(r"`(yolofleet_\w+)`", page)) <= set(METRICS)


def quoted(page: Path) -> list[str]:
    """What a page says is printed."""
    paragraphs = re.findall(r"^\*You see\*(.*?)\n\n", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    texts = [text for paragraph in paragraphs for text in re.findall(r"`([^`]+)`", paragraph.replace("\n", " "))]
    return [text for text in texts if " " in text]


def test_the_runbook_has_ten_failures() -> None:
    assert len(re.findall(r"^### ", RUNBOOK.read_text(), flags=re.MULTILINE)) >= 10 and len(quoted(RUNBOOK)) >= 20
    assert len(quoted(TROUBLESHOOTING)) >= 15


@pytest.mark.parametrize("text", [*quoted(RUNBOOK), *quoted(TROUBLESHOOTING)])
def test_what_a_page_says_is_printed_is_in_the_code(text: str) -> None:
    for part in re.split(r"\s*\.\.\.\s*", text):
        assert any(part in found for found in texts_of_the_package()), part


def test_prometheus_reads_rays_own_list_of_nodes() -> None:
    document = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert set(document) == {"global", "rule_files", "scrape_configs"}
    assert all((MONITORING / name).is_file() for name in document["rule_files"])
    (job,) = document["scrape_configs"]
    assert job["job_name"] == "ray" and set(job) == {"job_name", "file_sd_configs"}
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert [path for entry in job["file_sd_configs"] for path in entry["files"]] == [
        f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}",
        f"/var/lib/yolofleet/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}",
    ]
    unit = (MONITORING.parent / "systemd" / "yolofleet-head.service").read_text()
    assert "--temp-dir=/var/lib/yolofleet/ray\n" in unit
    assert "metrics_path" not in job, "Ray answers at /metrics, as Prometheus asks by itself"


def test_the_pod_monitor_finds_the_runs_pods() -> None:
    document = yaml.safe_load((MONITORING / "pod-monitor.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert set(document["spec"]) == {"selector", "podMetricsEndpoints"}
    (endpoint,) = document["spec"]["podMetricsEndpoints"]
    assert PORTS[endpoint["port"]] == METRICS_PORT
    assert {"targetLabel": "job", "replacement": "ray"} in endpoint["relabelings"], "alerts ask for this job"

    class Named:
        resource_name = "run"

    selector = document["spec"]["selector"]
    for role in ("head", "worker", "submitter"):
        pod = labels(Named(), role)  # type: ignore[arg-type]
        matches = selector["matchLabels"].items() <= pod.items() and all(
            entry["operator"] == "In" and pod[entry["key"]] in entry["values"] for entry in selector["matchExpressions"]
        )
        assert matches == (role != "submitter") and ROLE_LABEL in pod


@pytest.mark.parametrize(
    "broken",
    ["max by (run (a)", "sum(a))", "rate(a)", "ceiling(a)", "a >", "max by (run)", "a ? b", "/ a", "a{run='b'}"],
)
def test_the_check_of_expressions_finds_what_is_broken(broken: str) -> None:
    with pytest.raises(ValueError):
        metrics_of(broken)


def test_the_check_of_expressions_tells_metrics_from_labels() -> None:
    assert metrics_of('sum by (run, le) (rate(a_b{run=~"$run", c="d"}[5m])) / max(e) > 0.5') == {"a_b", "e"}

"""What documentation and examples name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fastside.cli import main
from fastside.config import load

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    code = re.findall(r"^```sh\n(.*?)^```|`([^`\n]+)`", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    verbs = {verb for pair in code for text in pair for verb in re.findall(r"\bfastside (\w+)", text)}
    assert verbs <= set(main.commands)


@pytest.mark.parametrize("page", ["configuration", "takeover"])
def test_the_example_configurations_are_sound(page: str, tmp_path: Path) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        path = tmp_path / "fastside.yaml"
        path.write_text(example)
        load(path)


def test_the_kubernetes_example_is_sound(tmp_path: Path) -> None:
    config_map, deployment = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    path = tmp_path / "fastside.yaml"
    path.write_text(config_map["data"]["fastside.yaml"])
    metrics_port = int(load(path).metrics.rpartition(":")[2])
    [sidecar] = deployment["spec"]["template"]["spec"]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert {"name": "metrics", "containerPort": metrics_port} in sidecar["ports"]
    probes = [sidecar[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert [probe["path"] for probe in probes] == ["/startupz", "/readyz", "/livez"]

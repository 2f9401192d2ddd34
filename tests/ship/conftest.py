"""What the checks of the chart and the image share: the checkers themselves, and the chart rendered by real Helm.

The checkers come with the extra `ship`. Where one is missing, CI fails; a developer's run skips, and says what to do.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "relay"


def missing(checker: str) -> NoReturn:
    """A check that did not run is never a check that passed."""
    reason = f"{checker} is not installed, so this was NOT checked: run `make ship` (it installs the extra `ship`)"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(name)


def program(name: str) -> str:
    """A program on PATH, or beside the Python that runs us (a virtual environment that is not activated)."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name) or shutil.which(name, path=beside) or missing(name)


@dataclass(frozen=True)
class Rendered:
    """The objects of one release."""

    objects: tuple[dict[str, Any], ...]
    notes: str

    def kinds(self) -> list[str]:
        return sorted(found["kind"] for found in self.objects)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> dict[str, Any]:
        found = [item for item in self.all(kind) if name in (None, item["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} ({name}), wanted one, in {self.kinds()}"
        return found[0]

    def pod(self) -> dict[str, Any]:
        template: dict[str, Any] = self.one("Deployment")["spec"]["template"]
        return template

    def relay(self) -> dict[str, Any]:
        """relay's container, wherever it runs."""
        spec = self.pod()["spec"]
        found = [one for one in (*spec.get("initContainers", ()), *spec["containers"]) if one["name"] == "relay"]
        assert len(found) == 1
        container: dict[str, Any] = found[0]
        return container

    def config_text(self) -> str:
        text: str = self.one("ConfigMap")["data"]["relay.yaml"]
        return text

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self.config_text())
        return config


@dataclass(frozen=True)
class Helm:
    """The official Helm SDK, on one chart."""

    sdk: ModuleType
    chart: Path = CHART

    def lint(self, values: dict[str, Any], kube_version: str) -> list[str]:
        """Warnings and errors; a lint that finds nothing returns nothing."""
        report = self.sdk.lint(str(self.chart), values, strict=True, kube_version=kube_version)
        worse_than_info = [
            f"{found['path']}: {found['error']}" for found in report["messages"] if found["severity"] > 1
        ]
        return [*worse_than_info, *report["errors"]]

    def render(self, values: dict[str, Any], *, name: str = "demo", namespace: str = "prod") -> Rendered:
        with self.sdk.Chart.load(str(self.chart)) as chart:
            files = chart.render(values, name=name, namespace=namespace)
        manifests = [text for path, text in sorted(files.items()) if not path.endswith("NOTES.txt")]
        notes = "".join(text for path, text in files.items() if path.endswith("relay/templates/NOTES.txt"))
        return Rendered(tuple(_objects(manifests)), notes)

    def refusal(self, values: dict[str, Any]) -> str:
        """Why these values are refused, by the schema or by a template."""
        with pytest.raises(self.sdk.HelmError) as refused:
            self.render(values)
        return str(refused.value)


class _StrictLoader(yaml.SafeLoader):
    """A key given twice is an error: Kubernetes would take the last one, and half of an object would be gone."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is given twice among {keys}"
        return super().construct_mapping(node, deep)


def _objects(manifests: Iterable[str]) -> Iterable[dict[str, Any]]:
    for text in manifests:
        yield from (found for found in yaml.load_all(text, _StrictLoader) if found)


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(module("helm_python"))


@pytest.fixture(scope="session")
def kubernetes_validate() -> ModuleType:
    return module("kubernetes_validate")


@pytest.fixture(scope="session")
def hadolint() -> str:
    return program("hadolint")

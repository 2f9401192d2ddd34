"""The chart, rendered by real Helm for every file in values/, held against the cluster's schemas and our own rules.

What cannot be seen here: a cluster. Nothing is installed; admission, scheduling and the network are not tried.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from relay.core.errors import ConfigError
from relay.settings import load
from relay.settings.schema import known_keys, pattern
from tests.ship.conftest import CHART, Helm, Rendered, module
from tests.ship.dockerfile import image_environment

pytestmark = pytest.mark.ship

VALUES = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted(Path(__file__).with_name("values").glob("*.yaml"))
}
PODS = [name for name, values in VALUES.items() if name != "sidecar-library"]
DEPLOYMENTS = [name for name, values in VALUES.items() if values.get("mode") != "sidecar"]
OLDEST = "1.29"

CHART_SETS = {"server.host", "server.admin_host", "redis.url", "embedded", "embedded.data_dir", "auth.token_secret"}
"""Keys of relay's that are no values under `config`: the chart decides them, or takes them as a secret."""


def values_of(name: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
    return merged(copy.deepcopy(VALUES[name]), change or {})


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = merged(base[key], value) if both else value
    return base


def at(path: str, value: Any) -> dict[str, Any]:
    """`at("a.b", 1)` is `{"a": {"b": 1}}`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


# --- every object is one the cluster knows -------------------------------------------------------------------------
@pytest.mark.parametrize("kube_version", [f"{OLDEST}.0", "1.37.0"])
@pytest.mark.parametrize("name", VALUES)
def test_lint_finds_nothing(helm: Helm, name: str, kube_version: str) -> None:
    assert helm.lint(values_of(name), kube_version) == []


SERVICE_MONITOR = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "required": ["name", "namespace", "labels"]},
        "spec": {
            "type": "object",
            "required": ["selector", "endpoints"],
            "additionalProperties": False,
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
                },
                "namespaceSelector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchNames": {"type": "array", "items": {"type": "string"}}},
                },
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["port"],
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                            "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                            "relabelings": {"type": "array", "items": {"type": "object"}},
                            "metricRelabelings": {"type": "array", "items": {"type": "object"}},
                        },
                    },
                },
            },
        },
    },
}
"""The part of the Prometheus operator's CRD that we use; it is in no bundled schema."""


def check_against_cluster(kubernetes_validate: ModuleType, rendered: Rendered) -> None:
    for version in (OLDEST, kubernetes_validate.latest_version()):
        for found in rendered.objects:
            if found["kind"] != "ServiceMonitor":
                kubernetes_validate.validate(found, version, strict=True)
    for found in rendered.all("ServiceMonitor"):
        module("jsonschema").validate(found, SERVICE_MONITOR)


@pytest.mark.parametrize("name", VALUES)
def test_objects_fit_the_oldest_and_the_newest_cluster(helm: Helm, kubernetes_validate: ModuleType, name: str) -> None:
    check_against_cluster(kubernetes_validate, helm.render(values_of(name)))


def test_the_cluster_check_can_fail(helm: Helm, kubernetes_validate: ModuleType) -> None:
    rendered = helm.render(values_of("minimal"))
    rendered.one("Deployment")["spec"]["replicaz"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        check_against_cluster(kubernetes_validate, rendered)


EXPECTED_KINDS = {
    "minimal": ["ConfigMap", "Deployment", "Service", "ServiceAccount"],
    "embedded": ["ConfigMap", "Deployment", "PersistentVolumeClaim", "Secret", "Service", "ServiceAccount"],
    "existing-secret": ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"],
    "full": [
        *("ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Secret"),
        *("Service", "Service", "ServiceAccount", "ServiceMonitor"),
    ],
    "sidecar": ["ConfigMap", "Deployment", "Secret"],
    "sidecar-library": ["ConfigMap", "Secret", "Service", "ServiceMonitor"],
}


@pytest.mark.parametrize("name", VALUES)
def test_only_what_was_asked_for_is_made(helm: Helm, name: str) -> None:
    assert helm.render(values_of(name)).kinds() == EXPECTED_KINDS[name]


@pytest.mark.parametrize("name", VALUES)
def test_names_are_unique_and_labelled(helm: Helm, name: str) -> None:
    rendered = helm.render(
        values_of(name), name="a-release-name-of-53-characters-the-longest-one-is-ok", namespace="prod"
    )
    names = [(found["kind"], found["metadata"]["name"]) for found in rendered.objects]
    assert len(names) == len(set(names))
    for found in rendered.objects:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", found["metadata"]["name"])
        assert found["metadata"]["namespace"] == "prod"
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} <= found["metadata"]["labels"].keys()


# --- relay.yaml ----------------------------------------------------------------------------------------------------
def environment(rendered: Rendered) -> dict[str, str]:
    """What relay's process would find: the image's variables, then the container's."""
    stored = {key: value for secret in rendered.all("Secret") for key, value in secret["stringData"].items()}
    elsewhere = {"url": "redis://redis:6379", "signing": "x" * 40, "agents": "token", "c": "token"}
    found = dict(image_environment())
    for variable in rendered.relay()["env"]:
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            ours = reference["name"] in {secret["metadata"]["name"] for secret in rendered.all("Secret")}
            found[variable["name"]] = (stored if ours else elsewhere)[reference["key"]]
    return found


@pytest.mark.parametrize("name", PODS)
def test_relay_accepts_its_rendered_configuration(helm: Helm, name: str, tmp_path: Path) -> None:
    rendered = helm.render(values_of(name))
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "b").write_text("token\n")
    config = tmp_path / "relay.yaml"
    config.write_text(rendered.config_text().replace("/etc/tokens", str(tokens)))

    settings = load(config, environment(rendered))

    assert settings.server.host == ("127.0.0.1" if name == "sidecar" else "0.0.0.0")
    assert settings.server.admin_host == rendered.config()["server"]["admin_host"]
    assert (settings.redis.url is None) == (name not in {"full", "existing-secret"})
    assert [upstream.token is not None for upstream in settings.upstreams] == [
        "token" in upstream for upstream in rendered.config()["upstreams"]
    ]
    if settings.redis.url is None:
        mounted = {mount["mountPath"] for mount in rendered.relay()["volumeMounts"]}
        assert str(Path(settings.embedded.data_dir).parent) in mounted


@pytest.mark.parametrize("name", PODS)
def test_the_process_reads_the_rendered_file_on_the_ports_it_declares(helm: Helm, name: str) -> None:
    rendered = helm.render(values_of(name))
    container, server = rendered.relay(), rendered.config()["server"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in rendered.pod()["spec"]["volumes"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    assert container["args"] == ["serve", "--config", "/etc/relay/relay.yaml"]
    assert volumes[mounts["/etc/relay"]]["configMap"]["name"] == rendered.one("ConfigMap")["metadata"]["name"]
    assert set(mounts.values()) <= volumes.keys()
    assert ports == {"relay-http": server["port"], "relay-admin": server["admin_port"]}


def test_the_schema_knows_exactly_the_keys_of_relay() -> None:
    config = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]
    assert set(_schema_keys(config, "")) == {pattern(key) for key in known_keys()} - CHART_SETS


def _schema_keys(node: dict[str, Any], path: str) -> Iterator[str]:
    if "items" in node:
        node, path = node["items"], f"{path}[]"
        yield path
    for name, child in node.get("properties", {}).items():
        key = f"{path}.{name}".removeprefix(".")
        yield key
        yield from _schema_keys(child, key)


@pytest.mark.parametrize("name", VALUES)
def test_whole_numbers_stay_whole(helm: Helm, name: str) -> None:
    """Helm reads numbers as floats; printed carelessly, a million becomes 1e+06, which is no whole number to relay."""
    assert re.search(r"\de[+-]?\d+$", helm.render(values_of(name)).config_text(), re.MULTILINE) is None


@pytest.mark.parametrize("name", VALUES)
def test_no_secret_stands_outside_the_secret(helm: Helm, name: str) -> None:
    rendered = helm.render(values_of(name))
    given = re.findall(r"S3CRET-[\w-]+", yaml.safe_dump(VALUES[name]))
    kept = yaml.safe_dump([found["stringData"] for found in rendered.all("Secret")])
    shown = yaml.safe_dump([found for found in rendered.objects if found["kind"] != "Secret"]) + rendered.notes
    assert all(secret in kept for secret in given)
    assert "S3CRET" not in shown


def test_service_names_and_the_users_are_allowed_hosts(helm: Helm) -> None:
    hosts = helm.render(values_of("full"), namespace="prod").config()["server"]["allowed_hosts"]
    assert hosts == ["relay", "relay.prod", "relay.prod.svc", "relay.prod.svc.cluster.local", "relay.example.com"]


def test_an_existing_secret_is_used_and_none_is_made(helm: Helm) -> None:
    rendered = helm.render(values_of("existing-secret"))
    references = {
        variable["name"]: tuple(variable["valueFrom"]["secretKeyRef"].values())
        for variable in rendered.relay()["env"]
        if "valueFrom" in variable
    }
    assert references == {
        "RELAY_REDIS__URL": ("relay-credentials", "url"),
        "RELAY_AUTH__TOKEN_SECRET": ("relay-credentials", "signing"),
        "UPSTREAM_TOKEN_MAIN": ("relay-credentials", "agents"),
    }
    assert rendered.all("Secret") == []


# --- the pod -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PODS)
def test_relay_runs_with_the_least_rights(helm: Helm, name: str) -> None:
    rendered = helm.render(values_of(name))
    assert rendered.relay()["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = rendered.pod()["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(account["automountServiceAccountToken"] is False for account in rendered.all("ServiceAccount"))
    assert rendered.relay()["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", PODS)
def test_the_root_is_read_only_but_what_is_written_is_a_volume(helm: Helm, name: str) -> None:
    rendered = helm.render(values_of(name))
    writable = {mount["mountPath"] for mount in rendered.relay()["volumeMounts"] if not mount.get("readOnly")}
    embedded = "RELAY_REDIS__URL" not in {variable["name"] for variable in rendered.relay()["env"]}
    assert writable == ({"/tmp", "/var/lib/relay"} if embedded else {"/tmp"})


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_probes_ask_the_admin_port(helm: Helm, name: str) -> None:
    container = helm.render(values_of(name)).relay()
    assert container["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "relay-admin"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "relay-admin"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "relay-admin"}


def test_a_probe_can_be_switched_off(helm: Helm) -> None:
    container = helm.render(values_of("minimal", at("probes.readiness.enabled", False))).relay()
    assert "readinessProbe" not in container
    assert "livenessProbe" in container


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_grace_period_is_longer_than_the_drain(helm: Helm, name: str) -> None:
    rendered = helm.render(values_of(name))
    hook = rendered.relay().get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep(0)"])
    seconds = re.search(r"sleep\((\d+)\)", hook[-1])
    assert seconds is not None
    drain = sum(rendered.config()["drain"].values())
    assert rendered.pod()["spec"]["terminationGracePeriodSeconds"] > int(seconds[1]) + drain


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_with_redis_an_update_never_takes_a_pod_away_and_without_it_never_adds_one(helm: Helm, name: str) -> None:
    strategy = helm.render(values_of(name)).one("Deployment")["spec"]["strategy"]
    if name in {"full", "existing-secret"}:
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    else:
        assert strategy == {"type": "Recreate"}


@pytest.mark.parametrize(
    "change",
    [at("config.drain.window_s", 3), at("secrets.upstreamTokens", {"main": "another"})],
    ids=["config", "secret"],
)
def test_a_change_rolls_the_pods(helm: Helm, change: dict[str, Any]) -> None:
    before = helm.render(values_of("minimal")).pod()["metadata"]["annotations"]
    after = helm.render(values_of("minimal", change)).pod()["metadata"]["annotations"]
    assert before != after
    assert before == helm.render(values_of("minimal")).pod()["metadata"]["annotations"]


@pytest.mark.parametrize("name", PODS)
def test_every_selector_finds_the_pods(helm: Helm, name: str) -> None:
    rendered = helm.render(values_of(name))
    labels = rendered.pod()["metadata"]["labels"].items()
    for service in rendered.all("Service"):
        assert service["spec"]["selector"].items() <= labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        for found in rendered.all(kind):
            assert found["spec"]["selector"]["matchLabels"].items() <= labels
    for found in rendered.all("NetworkPolicy"):
        assert found["spec"]["podSelector"]["matchLabels"].items() <= labels


def test_the_log_is_on_the_claim_that_is_made(helm: Helm) -> None:
    rendered = helm.render(values_of("embedded"))
    volumes = {volume["name"]: volume for volume in rendered.pod()["spec"]["volumes"]}
    claim = rendered.one("PersistentVolumeClaim")
    assert volumes["relay-data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert rendered.pod()["spec"]["securityContext"]["fsGroup"] == 10001

    given = helm.render(values_of("embedded", at("persistence.existingClaim", "mine")))
    assert given.all("PersistentVolumeClaim") == []
    assert "'mine'" in str(given.pod()["spec"]["volumes"])


def test_a_digest_wins_over_the_tag(helm: Helm) -> None:
    assert helm.render(values_of("embedded")).relay()["image"] == f"registry.example.com/relay@sha256:{'a' * 64}"
    assert helm.render(values_of("full")).relay()["image"] == "registry.example.com/relay:1.2.3"


# --- networks and metrics ------------------------------------------------------------------------------------------
def test_viewers_never_reach_the_admin_port_by_the_service(helm: Helm) -> None:
    rendered = helm.render(values_of("full"))
    assert [port["targetPort"] for port in rendered.one("Service", "relay")["spec"]["ports"]] == ["relay-http"]


def test_the_monitor_selects_the_metrics_service_only(helm: Helm) -> None:
    rendered = helm.render(values_of("full"))
    wanted = rendered.one("ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    selected = [found for found in rendered.all("Service") if wanted <= found["metadata"]["labels"].items()]
    assert [found["metadata"]["name"] for found in selected] == ["relay-metrics"]
    assert [port["name"] for port in selected[0]["spec"]["ports"]] == ["metrics"]
    assert selected[0]["spec"]["ports"][0]["targetPort"] == rendered.config()["server"]["admin_port"]


def test_the_network_policy_lets_in_the_namespace_and_no_scraper_by_default(helm: Helm) -> None:
    spec = helm.render(values_of("existing-secret")).one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [{"ports": [{"port": "relay-http", "protocol": "TCP"}], "from": [{"podSelector": {}}]}]


def test_a_restricted_egress_keeps_name_resolution(helm: Helm) -> None:
    spec = helm.render(values_of("full")).one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert {port["port"] for port in spec["egress"][0]["ports"]} == {53}
    assert len(spec["egress"]) == 2


# --- the sidecar ---------------------------------------------------------------------------------------------------
def test_the_sidecar_is_native_and_on_loopback_only(helm: Helm) -> None:
    rendered = helm.render(values_of("sidecar"))
    spec = rendered.pod()["spec"]
    assert [one["name"] for one in spec["containers"]] == ["backend"]
    assert [(one["name"], one["restartPolicy"]) for one in spec["initContainers"]] == [("relay", "Always")]
    server = rendered.config()["server"]
    assert (server["host"], server["admin_host"]) == ("127.0.0.1", "127.0.0.1")
    assert "lifecycle" not in rendered.relay()


def test_without_keys_the_sidecar_is_probed_from_inside(helm: Helm) -> None:
    container = helm.render(values_of("sidecar")).relay()
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        program, flag, code = container[probe]["exec"]["command"]
        assert (program, flag) == ("python", "-c")
        compile(code, probe, "exec")
        assert f'"GET", "{path}"' in code
        assert '"127.0.0.1", 9464' in code


def test_with_keys_the_sidecar_is_probed_and_scraped_from_outside(helm: Helm) -> None:
    change = {"metrics": VALUES["sidecar-library"]["metrics"], "config": {"auth": VALUES["minimal"]["config"]["auth"]}}
    rendered = helm.render(values_of("sidecar", merged(change, at("config.auth.mode", "api_keys"))))
    assert rendered.config()["server"]["host"] == "127.0.0.1"
    assert rendered.config()["server"]["admin_host"] == "0.0.0.0"
    assert "httpGet" in rendered.relay()["livenessProbe"]
    assert rendered.one("Service")["spec"]["selector"].items() <= rendered.pod()["metadata"]["labels"].items()


# --- what the README shows works -----------------------------------------------------------------------------------
README = re.findall(r"^```yaml\n(.*?)^```", (CHART / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def readme_block(first_line: str) -> str:
    block: str
    (block,) = [block for block in README if block.startswith(first_line)]
    return block


def test_the_readmes_releases_render(helm: Helm, kubernetes_validate: ModuleType) -> None:
    alone = yaml.safe_load(readme_block("# values.yaml of your release"))
    with_redis = merged(copy.deepcopy(alone), yaml.safe_load(readme_block("replicas: 3")))
    beside = yaml.safe_load(readme_block("mode: sidecar"))
    for values in (alone, with_redis, beside):
        check_against_cluster(kubernetes_validate, helm.render(values))


def test_a_parent_chart_includes_the_sidecar_as_the_readme_shows(
    helm: Helm, kubernetes_validate: ModuleType, tmp_path: Path
) -> None:
    parent = tmp_path / "backend"
    (parent / "templates").mkdir(parents=True)
    dependency = {"name": "relay", "version": "0.1.x", "condition": "relay.enabled"}
    meta = {"apiVersion": "v2", "name": "backend", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(meta))
    (parent / "values.yaml").write_text(readme_block("# values.yaml of your chart"))
    (parent / "templates" / "deployment.yaml").write_text(readme_block("# templates/deployment.yaml of your chart"))
    shutil.copytree(CHART, parent / "charts" / "relay")

    rendered = Helm(helm.sdk, parent).render({"global": {"any": "thing"}, "relay": {"enabled": True}})

    check_against_cluster(kubernetes_validate, rendered_in_a_namespace(rendered))
    assert rendered.kinds() == ["ConfigMap", "Deployment"]
    assert rendered.relay()["restartPolicy"] == "Always"
    config_map = rendered.one("ConfigMap")["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in rendered.pod()["spec"]["volumes"]}
    assert volumes["relay-config"]["configMap"]["name"] == config_map
    assert rendered.pod()["metadata"]["labels"]["run-relay/instance"] == config_map
    assert "checksum/config" in rendered.pod()["metadata"]["annotations"]


def rendered_in_a_namespace(rendered: Rendered) -> Rendered:
    """The example's own Deployment has no namespace, like most charts': the release's is meant."""
    for found in rendered.objects:
        found["metadata"].setdefault("namespace", "prod")
    return rendered


# --- refusals ------------------------------------------------------------------------------------------------------
SCHEMA_REFUSES: list[tuple[dict[str, Any], str, str]] = [
    (at("replicaz", 2), "", "replicaz"),
    (at("replicas", "two"), "/replicas", "integer"),
    (at("mode", "daemonset"), "/mode", "sidecar"),
    (at("config.server.prot", 80), "/config/server", "prot"),
    (at("config.server.port", 80), "/config/server/port", "1,?024"),
    (at("config.server.host", "1.2.3.4"), "/config/server", "host"),
    (at("config.server.workers", 65), "/config/server/workers", "64"),
    (at("config.drain.close_s", 0), "/config/drain/close_s", "0"),
    (at("config.server.allowed_hosts", ["relay:8080"]), "/config/server/allowed_hosts/0", "pattern"),
    (at("config.server.cors_origins", ["https://App/x"]), "/config/server/cors_origins/0", "pattern"),
    (at("config.redis.url", "redis://r"), "/config/redis", "url"),
    (at("config.embedded", {}), "/config", "embedded"),
    (at("config.retention.sealed", 1), "/config/retention", "sealed"),
    (at("config.upstreams", []), "/config/upstreams", "minItems"),
    (at("config.delivery.retry_min_ms", 10), "/config/delivery/retry_min_ms", "1,?000"),
    (at("config.log.level", "loud"), "/config/log/level", "debug"),
    (at("config.auth.mode", "jwt"), "/config/auth/mode", "api_keys"),
    (at("config.auth.keys", [{"name": "a", "hash": "sha256:short"}]), "/config/auth/keys/0/hash", "pattern"),
    (at("config.auth.token_secret", "x" * 40), "/config/auth", "token_secret"),
    (at("secrets.tokenSecret", "short"), "/secrets/tokenSecret", "pattern"),
    (at("secrets.redisUrl", "http://redis"), "/secrets/redisUrl", "pattern"),
    (at("secrets.upstreamTokens", {"Main!": "x"}), "/secrets/upstreamTokens", "Main!"),
    (at("image.digest", "latest"), "/image/digest", "pattern"),
    (at("probes.liveness.path", "/"), "/probes/liveness", "path"),
    (at("podDisruptionBudget.minAvailable", 1), "/podDisruptionBudget", "minAvailable"),
    (at("sidecar.workload.volumes", []), "/sidecar/workload", "volumes"),
    (at("metrics.serviceMonitor.interval", "often"), "/metrics/serviceMonitor/interval", "pattern"),
]


@pytest.mark.parametrize(
    ("change", "path", "word"), SCHEMA_REFUSES, ids=[f"{path}:{word}" for _, path, word in SCHEMA_REFUSES]
)
def test_the_schema_refuses_and_says_where(helm: Helm, change: dict[str, Any], path: str, word: str) -> None:
    message = helm.refusal(values_of("minimal", change))
    assert f"at '{path}'" in message
    assert re.search(word, message)


def test_a_literal_token_in_the_config_is_refused(helm: Helm) -> None:
    upstream = {**VALUES["minimal"]["config"]["upstreams"][0], "token": "Bearer-of-all"}
    assert "at '/config/upstreams/0/token'" in helm.refusal(values_of("minimal", at("config.upstreams", [upstream])))


EXISTING = {"name": "mine"}
TWICE = [*VALUES["minimal"]["config"]["upstreams"] * 2]
OWN_TOKEN = [{**VALUES["minimal"]["config"]["upstreams"][0], "token": "env:TOKEN"}]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("minimal", at("config.auth.mode", "none"), ["config.auth.mode", "api_keys", "deployment"]),
        ("minimal", at("config.auth.keys", []), ["config.auth.keys", "relay token key"]),
        ("minimal", at("replicas", 2), ["replicas is 2", "secrets.redisUrl"]),
        ("minimal", at("secrets.redisUrl", "redis://r"), ["secrets.tokenSecret"]),
        ("minimal", at("secrets.upstreamTokens", {"mian": "x"}), ['"mian"', "config.upstreams", "main"]),
        ("minimal", at("secrets.existing.redisUrlKey", "url"), ["secrets.existing.name"]),
        ("minimal", at("config.upstreams", TWICE), ['"main" twice']),
        (
            "minimal",
            at("terminationGracePeriodSeconds", 10),
            ["terminationGracePeriodSeconds is 10", "config.drain.window_s"],
        ),
        ("full", at("secrets.existing", EXISTING), ["secrets.existing.name", "must be empty"]),
        ("full", at("persistence.enabled", True), ["persistence.enabled", "Redis"]),
        ("existing-secret", at("config.upstreams", OWN_TOKEN), ['"main" has its token twice']),
        ("sidecar", at("persistence.enabled", True), ["persistence.enabled", "deployment"]),
        ("sidecar", at("metrics.serviceMonitor.enabled", True), ["metrics.serviceMonitor.enabled", "api_keys"]),
        ("sidecar", at("config.server.allowed_hosts", ["*"]), ["config.server.allowed_hosts"]),
        ("sidecar", at("mode", "deployment"), ["config.auth.mode"]),
    ],
)
def test_contradictions_are_refused_by_name(helm: Helm, name: str, change: dict[str, Any], words: list[str]) -> None:
    message = helm.refusal(values_of(name, change))
    assert [word for word in words if word not in message] == []


def test_relay_itself_would_refuse_what_the_chart_refuses(tmp_path: Path) -> None:
    """The rule behind the chart's: without keys, nothing but loopback, also for the admin listener."""
    config = tmp_path / "relay.yaml"
    config.write_text("server: {host: 127.0.0.1, admin_host: 0.0.0.0}\nauth: {mode: none}\n")
    with pytest.raises(ConfigError, match=r"auth\.mode"):
        load(config, {}, require_upstreams=False)


# --- values.yaml ---------------------------------------------------------------------------------------------------
CLUSTER_SHAPED = {"resources", "podSecurityContext", "securityContext"}
"""Values whose keys are Kubernetes' own."""


def test_every_value_is_explained() -> None:
    """A comment stands above each key; a key that only opens a group may leave that to the keys in it."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    unexplained, group, depth = [], "", 0
    for before, line in zip(["", *lines], lines, strict=False):
        found = re.match(r"( *)([A-Za-z_]+):(.*)", line)
        if found is None:
            continue
        if len(found[1]) <= depth or group not in CLUSTER_SHAPED:
            group, depth = found[2], len(found[1])
            if found[3] and not before.lstrip().startswith("#"):
                unexplained.append(line)
    assert unexplained == []


def test_the_schema_knows_exactly_the_keys_of_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    _compare(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")


def _compare(schema: dict[str, Any], values: Any, path: str) -> None:
    if not isinstance(values, dict) or "properties" not in schema:
        return
    optional = {"global", "enabled"} if not path else set()
    filled = path.startswith((".resources", ".config")) or not values
    if not filled:
        assert schema["properties"].keys() - optional == values.keys(), path
    assert schema["additionalProperties"] is False, path
    for name, value in values.items():
        _compare(schema["properties"][name], value, f"{path}.{name}")

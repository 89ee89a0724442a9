"""The Kubernetes manifests: kinds, fields that KubeRay knows, tokens, and the same pods in both."""

import shlex
from collections.abc import Callable, Iterator

import pytest
import yaml

from tests.cluster.cluster_files import (
    CLUSTER,
    COUNT,
    ROOT,
    STRING,
    Config,
    closed,
    load,
    options,
    rename,
    schema_problems,
)

MANIFESTS = ("raycluster.yaml", "rayjob.yaml")

CONTAINER = closed(
    {
        "name": STRING,
        "image": STRING,
        "imagePullPolicy": STRING,
        "command": {"type": "array", "items": STRING},
        "args": {"type": "array", "items": STRING},
        "ports": {"type": "array", "items": closed({"name": STRING, "containerPort": COUNT}, "name", "containerPort")},
        "env": {"type": "array", "items": closed({"name": STRING, "value": STRING}, "name", "value")},
        "resources": closed({"requests": {"type": "object"}, "limits": {"type": "object"}}, "requests", "limits"),
        "volumeMounts": {"type": "array", "items": closed({"name": STRING, "mountPath": STRING}, "name", "mountPath")},
    },
    *("name", "image", "resources"),
)
CLAIM = closed({"claimName": STRING}, "claimName")
POD = closed(
    {
        "restartPolicy": {"const": "Never"},
        "securityContext": closed(
            {"fsGroup": COUNT, "fsGroupChangePolicy": {"const": "OnRootMismatch"}}, "fsGroup", "fsGroupChangePolicy"
        ),
        "tolerations": {"type": "array"},
        "containers": {"type": "array", "items": CONTAINER, "minItems": 1},
        "volumes": {
            "type": "array",
            "items": closed({"name": STRING, "persistentVolumeClaim": CLAIM}, "name", "persistentVolumeClaim"),
        },
    },
    *("restartPolicy", "containers", "volumes"),
)
TEMPLATE = closed({"spec": POD}, "spec")
PARAMS = {"type": "object", "additionalProperties": STRING}  # KubeRay takes strings only
HEAD = closed({"serviceType": {"const": "ClusterIP"}, "rayStartParams": PARAMS, "template": TEMPLATE}, "template")
GROUP = closed(
    {
        "groupName": {"type": "string", "pattern": "^[a-z0-9-]+$"},
        "replicas": COUNT,
        "minReplicas": {"const": 0},
        "maxReplicas": COUNT,
        "rayStartParams": PARAMS,
        "template": TEMPLATE,
    },
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
)
CLUSTER_SPEC = closed(
    {
        "rayVersion": STRING,
        "authOptions": closed({"mode": {"const": "token"}}, "mode"),
        "enableInTreeAutoscaling": {"const": True},
        "autoscalerOptions": closed({"version": {"const": "v2"}, "idleTimeoutSeconds": COUNT}),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": {"type": "array", "items": GROUP, "minItems": 1},
    },
    *("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
)
JOB_SPEC = closed(
    {
        "entrypoint": STRING,
        "submissionMode": {"enum": ["HTTPMode", "K8sJobMode"]},
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": {"const": True},
        "ttlSecondsAfterFinished": COUNT,
        "activeDeadlineSeconds": COUNT,
        "rayClusterSpec": CLUSTER_SPEC,
    },
    *("entrypoint", "shutdownAfterJobFinishes", "rayClusterSpec"),
)


def manifest_schema(kind: str, spec: Config) -> Config:
    head = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": closed({"name": STRING}, "name")}
    return closed({**head, "spec": spec}, "apiVersion", "kind", "metadata", "spec")


MANIFEST_SCHEMAS = {
    "raycluster.yaml": manifest_schema("RayCluster", CLUSTER_SPEC),
    "rayjob.yaml": manifest_schema("RayJob", JOB_SPEC),
}


def cluster_spec(name: str) -> Config:
    spec: Config = load(f"kuberay/{name}")["spec"]
    found: Config = spec.get("rayClusterSpec", spec)
    return found


def pods(spec: Config) -> Iterator[Config]:
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        yield group["template"]["spec"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_the_right_kind_and_known_fields_only(name: str) -> None:
    assert schema_problems(load(f"kuberay/{name}"), MANIFEST_SCHEMAS[name]) == []


MANIFEST_TYPOS: dict[str, Callable[[Config], None]] = {
    "authOption": lambda spec: rename(spec, "authOptions", "authOption"),
    "modes": lambda spec: rename(spec["authOptions"], "mode", "modes"),
    "workerGroupSpec": lambda spec: rename(spec, "workerGroupSpecs", "workerGroupSpec"),
    "minReplica": lambda spec: rename(spec["workerGroupSpecs"][0], "minReplicas", "minReplica"),
    "volumeMount": lambda spec: rename(next(pods(spec))["containers"][0], "volumeMounts", "volumeMount"),
    "'token' was expected": lambda spec: spec["authOptions"].update(mode="disabled"),
}


@pytest.mark.parametrize("typo", MANIFEST_TYPOS)
def test_the_manifest_check_finds_typos_in_cluster_and_job(typo: str) -> None:
    for name in MANIFESTS:
        document = load(f"kuberay/{name}")
        MANIFEST_TYPOS[typo](document["spec"].get("rayClusterSpec", document["spec"]))
        assert any(typo in problem for problem in schema_problems(document, MANIFEST_SCHEMAS[name]))


def test_job_and_cluster_run_on_the_same_pods() -> None:
    assert cluster_spec("rayjob.yaml") == cluster_spec("raycluster.yaml")


def test_every_pod_claims_storage_that_exists_and_mounts_what_it_claims() -> None:
    claims = {claim["metadata"]["name"] for claim in yaml.safe_load_all((CLUSTER / "kuberay/storage.yaml").read_text())}
    for pod in pods(cluster_spec("raycluster.yaml")):
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} <= claims
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_gpu_groups_ask_kubernetes_for_the_gpus_that_ray_is_told_of() -> None:
    groups = cluster_spec("raycluster.yaml")["workerGroupSpecs"]
    asked = [group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for group in groups]
    assert asked == [group["rayStartParams"]["num-gpus"] for group in groups]
    assert all(int(gpus) > 0 for gpus in asked)


def test_mlflow_of_the_head_pod_listens_on_loopback() -> None:
    (mlflow,) = [c for c in next(pods(cluster_spec("raycluster.yaml")))["containers"] if c["name"] == "mlflow"]
    given = options(" ".join(mlflow["command"] + mlflow["args"]), "mlflow server")
    assert (given["--host"], given["--workers"]) == ("127.0.0.1", "1")


def test_the_job_runs_a_study_that_exists_and_resumes_it() -> None:
    words = shlex.split(shlex.split(load("kuberay/rayjob.yaml")["spec"]["entrypoint"])[2])
    (study,) = [word for word in words if word.startswith("studies/")]
    assert (ROOT / study).is_file()
    assert words[words.index("--resume") + 1] == "auto"
    mounts = next(pods(cluster_spec("rayjob.yaml")))["containers"][0]["volumeMounts"]
    assert any(words[words.index("--storage-path") + 1].startswith(f"{mount['mountPath']}/") for mount in mounts)

"""The Kubernetes manifests: fields that KubeRay knows, tokens, and the same pods in both."""

import re
import shlex
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.cluster_files import CLUSTER, ROOT, Config, load, options, unknown_fields

KNOWN = {
    "RayJob": "entrypoint submissionMode backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished "
    "activeDeadlineSeconds rayClusterSpec",
    "rayClusterSpec": "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs",
    "authOptions": "mode",
    "autoscalerOptions": "version idleTimeoutSeconds",
    "headGroupSpec": "serviceType rayStartParams template",
    "workerGroupSpecs": "groupName replicas minReplicas maxReplicas rayStartParams template",
    "template": "spec",
    "spec": "restartPolicy securityContext tolerations containers volumes",
    "securityContext": "fsGroup fsGroupChangePolicy",
    "containers": "name image imagePullPolicy command args ports env resources volumeMounts",
    "ports": "name containerPort",
    "env": "name value",
    "resources": "requests limits",
    "volumeMounts": "name mountPath",
    "volumes": "name persistentVolumeClaim",
    "persistentVolumeClaim": "claimName",
}
CLUSTER_SPEC: Config = load("kuberay/raycluster.yaml")["spec"]
JOB_SPEC: Config = load("kuberay/rayjob.yaml")["spec"]


def pods() -> Iterator[Config]:
    for group in [CLUSTER_SPEC["headGroupSpec"], *CLUSTER_SPEC["workerGroupSpecs"]]:
        yield group["template"]["spec"]


def unknown(cluster: str, job: str) -> list[str]:
    of_cluster = unknown_fields(yaml.safe_load(cluster)["spec"], "rayClusterSpec", KNOWN)
    return [*of_cluster, *unknown_fields(yaml.safe_load(job)["spec"], "RayJob", KNOWN)]


@pytest.mark.parametrize(
    "typo", ["", "authOptions", "mode", "workerGroupSpecs", "minReplicas", "volumeMounts", "backoffLimit"]
)
def test_fields_are_known_and_a_typo_is_found(typo: str) -> None:
    texts = [(CLUSTER / "kuberay" / name).read_text() for name in ("raycluster.yaml", "rayjob.yaml")]
    found = unknown(*(re.sub(rf"\b{typo}:", f"{typo}x:", text) if typo else text for text in texts))
    assert {field.split(".")[1] for field in found} == ({f"{typo}x"} if typo else set())


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_a_manifest_says_what_it_is(kind: str) -> None:
    manifest = load(f"kuberay/{kind.lower()}.yaml")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert (manifest["apiVersion"], manifest["kind"], set(manifest["metadata"])) == ("ray.io/v1", kind, {"name"})


def test_job_and_cluster_run_on_the_same_pods() -> None:
    assert JOB_SPEC["rayClusterSpec"] == CLUSTER_SPEC


def test_tokens_are_on_and_idle_pods_go_away_and_never_restart_in_place() -> None:
    assert CLUSTER_SPEC["authOptions"] == {"mode": "token"}
    assert CLUSTER_SPEC["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert CLUSTER_SPEC["enableInTreeAutoscaling"]
    assert JOB_SPEC["shutdownAfterJobFinishes"]
    groups = CLUSTER_SPEC["workerGroupSpecs"]
    assert {group["minReplicas"] for group in groups} == {0}
    assert {pod["restartPolicy"] for pod in pods()} == {"Never"}
    params = [group["rayStartParams"] for group in (CLUSTER_SPEC["headGroupSpec"], *groups)]
    assert {type(value) for each in params for value in each.values()} == {str}  # KubeRay takes strings only


def test_every_pod_claims_storage_that_exists_and_mounts_what_it_claims() -> None:
    claims = {claim["metadata"]["name"] for claim in yaml.safe_load_all((CLUSTER / "kuberay/storage.yaml").read_text())}
    for pod in pods():
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} <= claims
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_gpu_groups_ask_kubernetes_for_the_gpus_that_ray_is_told_of() -> None:
    groups = CLUSTER_SPEC["workerGroupSpecs"]
    asked = [group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for group in groups]
    assert asked == [group["rayStartParams"]["num-gpus"] for group in groups]
    assert all(int(gpus) > 0 for gpus in asked)


def test_mlflow_of_the_head_pod_listens_on_loopback() -> None:
    (mlflow,) = [container for container in next(pods())["containers"] if container["name"] == "mlflow"]
    given = options(" ".join(mlflow["command"] + mlflow["args"]), "mlflow server")
    assert (given["--host"], given["--workers"]) == ("127.0.0.1", "1")


def test_the_job_runs_a_study_that_exists_and_resumes_it() -> None:
    words = shlex.split(shlex.split(JOB_SPEC["entrypoint"])[2])
    (study,) = [word for word in words if word.startswith("studies/")]
    assert (ROOT / study).is_file()
    assert words[words.index("--resume") + 1] == "auto"
    mounts = next(pods())["containers"][0]["volumeMounts"]
    assert any(words[words.index("--storage-path") + 1].startswith(f"{mount['mountPath']}/") for mount in mounts)

"""The cluster files, checked offline: by Ray's own validation, for unknown fields, and for secrets."""

import copy
import re
import shlex
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from tests.cluster.cluster_files import CLUSTER, ROOT, Config, load, options, pyproject, texts, unknown_fields

START_KEYS = ("head_start_ray_commands", "worker_start_ray_commands")
of_each_file = pytest.mark.parametrize("name", ["gpu.yaml", "local.yaml"])


@of_each_file
def test_ray_accepts_it_and_adds_no_start_command_of_its_own(name: str) -> None:
    config = load(name)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert {key: prepared[key] for key in START_KEYS} == {key: config[key] for key in START_KEYS}


# --- Fields: Ray lets a typo inside `provider` and `node_config` pass ----------------------------------------------

KNOWN = {
    "aws": "type region availability_zone cache_stopped_nodes use_internal_ips security_group",
    "local": "type head_ip worker_ips external_head_ip",
    "security_group": "GroupName",
    "node type": "min_workers max_workers resources node_config",
    "resources": "CPU GPU",
    "node_config": "InstanceType ImageId KeyName IamInstanceProfile BlockDeviceMappings MetadataOptions "
    "InstanceMarketOptions",
    "BlockDeviceMappings": "DeviceName Ebs",
    "Ebs": "VolumeSize VolumeType Encrypted",
    "MetadataOptions": "HttpTokens HttpPutResponseHopLimit",
    "InstanceMarketOptions": "MarketType",
}


def unknown(config: Config) -> list[str]:
    provider, nodes = config["provider"], list(config.get("available_node_types", {}).values())
    return [*unknown_fields(provider, provider["type"], KNOWN), *unknown_fields(nodes, "node type", KNOWN)]


@of_each_file
def test_provider_and_node_types_hold_known_fields_only(name: str) -> None:
    assert unknown(load(name)) == []


@pytest.mark.parametrize("right", ["region", "GroupName", "GPU", "InstanceMarketOptions", "ImageId", "min_workers"])
def test_a_typo_is_found(right: str) -> None:
    text = re.sub(rf"\b{right}:", f"{right}s:", (CLUSTER / "gpu.yaml").read_text())
    assert {field.split(".")[1] for field in unknown(yaml.safe_load(text))} == {f"{right}s"}


@pytest.mark.parametrize("node_type", ["head", "gpu_4", "gpu_8"])
def test_aws_knows_every_field_of_the_node_config(node_type: str) -> None:
    session = pytest.importorskip("botocore.session", reason="describes AWS's API; in the cluster extra")
    validate = pytest.importorskip("botocore.validate")
    shape = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    request = {**load("gpu.yaml")["available_node_types"][node_type]["node_config"], "MinCount": 1, "MaxCount": 1}
    assert validate.ParamValidator().validate(request, shape).generate_report() == ""


# --- The machines ---------------------------------------------------------------------------------------------


def test_the_head_stays_without_trials_and_gpu_machines_come_on_spot_and_go_when_idle() -> None:
    config = load("gpu.yaml")
    workers = dict(config["available_node_types"])
    head = workers.pop(config["head_node_type"])
    assert head["resources"]["GPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(node["resources"]["GPU"] and "InstanceMarketOptions" in node["node_config"] for node in workers.values())
    assert not any(node["min_workers"] for node in workers.values())
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_disks_are_encrypted_and_the_metadata_service_wants_a_token() -> None:
    for node in load("gpu.yaml")["available_node_types"].values():
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_local_file_starts_every_machine_it_lists() -> None:
    config = load("local.yaml")
    count = len(config["provider"]["worker_ips"])
    assert (config["min_workers"], config["max_workers"]) == (count, count)


@of_each_file
def test_package_is_installed_from_the_synced_folder_with_its_extras(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/backlink-ray"] == "."
    assert any("pip install" in c and "$HOME/backlink-ray[cluster]" in c for c in config["setup_commands"])
    assert "cluster" in pyproject()["project"]["optional-dependencies"]


# --- Versions ---------------------------------------------------------------------------------------------------


def test_wherever_ray_is_named_it_is_pinned_to_one_version_the_tested_one_or_the_floor() -> None:
    everything = "\n".join(texts().values())
    named = r"(?:rayproject/ray:|ray\[default\]==|rayVersion: \")"
    pins = re.findall(named + r"(\d+\.\d+\.\d+)", everything)
    assert len(pins) == len(re.findall(r"rayproject/ray|ray\[default\]|rayVersion", everything)) > 0
    (version,) = {Version(pin) for pin in pins}
    requirements = {each.name: each.specifier for each in map(Requirement, pyproject()["project"]["dependencies"])}
    floor = next(Version(part.version) for part in requirements["ray"] if part.operator == ">=")
    assert version in {Version(metadata.version("ray")), floor}
    assert version >= Version("2.52")  # CVE-2025-62593


def test_no_image_floats() -> None:
    images = re.findall(r"^\s*(?:-\s*)?(?:image:|FROM)\s+(\S+)", "\n".join(texts().values()), re.MULTILINE)
    project = pyproject()["project"]
    ours = {image for image in images if not image.startswith("rayproject/ray:")}
    assert ours == {f"backlink-ray:{project['version']}"}
    pythons = {found for image in set(images) - ours for found in re.findall(r"-py3(\d+)-cu\d+$", image)}
    assert [f"3.{minor}" in SpecifierSet(project["requires-python"]) for minor in pythons] == [True]


# --- Secrets, tokens, loopback ----------------------------------------------------------------------------------

SECRETS = {
    "private key": re.compile(r"-----BEGIN"),
    "AWS key id": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "AWS secret": re.compile(r"aws_(?:secret_access_key|session_token|credentials)\s*[:=]", re.IGNORECASE),
    "token": re.compile(r"RAY_AUTH_TOKEN\s*[:=]|\b[0-9a-f]{32,}\b|\bBearer\s+\S"),
    "password": re.compile(r"password\s*[:=]\s*\S|://[^/\s:]+:[^/\s@]+@", re.IGNORECASE),
    "local path": re.compile(r"(?<![\w.~*/:}-])/(?!mnt/backlink|home/ray/|home/ubuntu/|dev/|aws/service/)\w+/"),
}


def secrets(text: str) -> list[str]:
    return [kind for kind, pattern in SECRETS.items() if pattern.search(text)]


def test_no_file_holds_a_secret() -> None:
    assert {name: found for name, text in texts().items() if (found := secrets(text))} == {}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("private key", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("AWS key id", "aws: AKIA" + "A" * 16),
        ("AWS secret", "aws_secret_access_key: x"),
        ("token", "RAY_AUTH_TOKEN=abc"),
        ("token", "token: " + "0f" * 32),
        ("password", "postgresql://me:secret@host/db"),
        ("local path", "local: /Users/me/.ssh/key"),
    ],
)
def test_the_search_for_secrets_finds_them(kind: str, text: str) -> None:
    assert secrets(text) == [kind]


@of_each_file
def test_key_and_token_are_given_by_reference(name: str) -> None:
    config = load(name)
    assert set(config["auth"]) <= {"ssh_user", "ssh_private_key"}
    assert config["auth"].get("ssh_private_key", "~/").startswith("~/")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@of_each_file
def test_ray_starts_with_tokens_options_that_it_knows_and_enough_open_files(name: str) -> None:
    known = {option for parameter in ray_cli.commands["start"].params for option in parameter.opts}
    config, starts = load(name), {}
    for key in START_KEYS:
        (command,) = [command for command in config[key] if "ray start" in command]
        before = command.split("ray start")[0]
        assert "export RAY_AUTH_MODE=token;" in before
        assert "ulimit -n " in before
        starts[key] = options(command, "ray start")
        assert set(starts[key]) <= known
    assert any("echo 'export RAY_AUTH_MODE=token' >> ~/.bashrc" in command for command in config["setup_commands"])
    head, worker = starts.values()
    assert worker["--address"] == f"$RAY_HEAD_IP:{head['--port']}"
    assert head["--dashboard-host"] == "127.0.0.1"
    assert head.get("--node-ip-address") == config["provider"].get("head_ip")


@of_each_file
def test_mlflow_listens_on_loopback_and_knows_every_option_given_to_it(name: str) -> None:
    (command,) = [command for command in load(name)["head_start_ray_commands"] if "mlflow server" in command]
    mlflow = options(command, "mlflow server")
    assert mlflow["--host"] == "127.0.0.1"
    assert mlflow["--workers"] == "1"  # several processes on a fresh SQLite file fail
    assert mlflow["--backend-store-uri"].startswith("sqlite:///")
    cli = pytest.importorskip("mlflow.cli")
    assert set(mlflow) <= {option for parameter in cli.server.params for option in parameter.opts}


# --- The page ---------------------------------------------------------------------------------------------------


def test_the_page_uses_ray_commands_and_options_that_exist() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (CLUSTER / "README.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    used = [words for line in lines if (words := shlex.split(line, comments=True))[:1] == ["ray"] and words[1] != "job"]
    assert {words[1] for words in used} >= {"up", "exec", "attach", "dashboard", "down"}
    for words in used:
        command = ray_cli.commands[words[1]]
        assert {word for word in words if word.startswith("-")} <= {o for p in command.params for o in p.opts}, words


def test_the_page_names_files_that_exist() -> None:
    named = set(re.findall(r"cluster/[\w./-]*\.(?:yaml|md)|cluster/kuberay/Dockerfile\b", "\n".join(texts().values())))
    assert len(named) >= 6
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_studies_are_started_with_flags_that_they_have() -> None:
    from backlink_ray.commands.search import SearchFlags
    from backlink_ray.pipeline.resources import StageResources

    fields = (*SearchFlags.__dataclass_fields__, *StageResources.__dataclass_fields__)
    calls = re.findall(r"studies/\w+\.py((?:\s+[\w/.-]+)*)", "\n".join(texts().values()))
    used = {word for call in calls for word in call.split() if word.startswith("--")}
    assert used >= {"--address", "--gpus", "--storage-path"}
    assert used <= {"--" + field.replace("_", "-") for field in fields}

"""The cluster files, checked offline: by Ray's own validation, by schemas of ours that know typos, and for secrets."""

import copy
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import metadata

import jsonschema  # type: ignore[import-untyped]  # ships no type information; it comes with Ray
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from tests.cluster.cluster_files import (
    CLUSTER,
    COUNT,
    FLAG,
    ROOT,
    STRING,
    Config,
    closed,
    load,
    options,
    pyproject,
    rename,
    schema_problems,
    texts,
)

LAUNCHER_FILES = ("gpu.yaml", "local.yaml")
START_KEYS = ("head_start_ray_commands", "worker_start_ray_commands")


def prepared(config: Config) -> Config:
    """What `ray up` would work with: our file merged with Ray's defaults, checked by Ray."""
    result: Config = prepare_config(copy.deepcopy(config))
    validate_config(result)
    return result


# --- Ray's own validation ---------------------------------------------------------------------------------------


def test_ray_refuses_a_typo_at_the_top_level() -> None:
    """That our files pass is part of every test that looks at what Ray made of them."""
    config = load("gpu.yaml")
    rename(config, "file_mounts", "file_mount")
    with pytest.raises(jsonschema.ValidationError, match="file_mount"):
        prepared(config)


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_ray_adds_no_start_command_of_its_own(name: str) -> None:
    config = load(name)
    assert {key: prepared(config)[key] for key in START_KEYS} == {key: config[key] for key in START_KEYS}


def test_local_file_starts_every_machine_it_lists() -> None:
    config = load("local.yaml")
    count = len(config["provider"]["worker_ips"])
    assert (config["min_workers"], config["max_workers"]) == (count, count)


# --- Schemas of ours: Ray lets a typo inside `provider` and `node_config` pass ------------------------------------

AMI = {"type": "string", "pattern": "^ami-[0-9a-f]{17}$"}

PROVIDERS: dict[str, Config] = {
    "aws": closed(
        {
            "type": STRING,
            "region": {"type": "string", "pattern": "^[a-z]{2}-[a-z]+-[0-9]$"},
            "availability_zone": STRING,
            "cache_stopped_nodes": FLAG,
            "use_internal_ips": FLAG,
            "security_group": closed({"GroupName": STRING}, "GroupName"),
        },
        *("type", "region", "availability_zone", "cache_stopped_nodes", "security_group"),
    ),
    "local": closed(
        {
            "type": STRING,
            "head_ip": {"type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+$"},
            "worker_ips": {"type": "array", "items": {"type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+$"}},
            "external_head_ip": STRING,
        },
        *("type", "head_ip", "worker_ips"),
    ),
}

EBS = closed({"VolumeSize": COUNT, "VolumeType": STRING, "Encrypted": {"const": True}}, "VolumeSize", "Encrypted")
NODE_CONFIG = closed(
    {
        "InstanceType": {"type": "string", "pattern": r"^[a-z0-9-]+\.[a-z0-9]+$"},
        "ImageId": AMI,
        "KeyName": STRING,
        "IamInstanceProfile": closed({"Arn": STRING}, "Arn"),
        "BlockDeviceMappings": {"type": "array", "items": closed({"DeviceName": STRING, "Ebs": EBS}, "Ebs")},
        "MetadataOptions": closed({"HttpTokens": {"const": "required"}, "HttpPutResponseHopLimit": COUNT}),
        "InstanceMarketOptions": closed({"MarketType": {"const": "spot"}}, "MarketType"),
    },
    *("InstanceType", "ImageId", "BlockDeviceMappings", "MetadataOptions"),
)
NODE_TYPE = closed(
    {
        "min_workers": COUNT,
        "max_workers": COUNT,
        "resources": closed({"CPU": COUNT, "GPU": COUNT}, "CPU", "GPU"),
        "node_config": NODE_CONFIG,
    },
    *("resources", "node_config"),
)


def launcher_problems(config: Config) -> list[str]:
    """What is wrong inside `provider` and the node types, one line each; empty when nothing is."""
    schema = {
        "properties": {
            "provider": PROVIDERS[config["provider"]["type"]],
            "available_node_types": {"type": "object", "additionalProperties": NODE_TYPE},
        }
    }
    return schema_problems(config, schema)


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_provider_and_node_types_hold_known_fields_only(name: str) -> None:
    assert launcher_problems(load(name)) == []


TYPOS: dict[str, tuple[str, Callable[[Config], None]]] = {
    "regoin": ("gpu.yaml", lambda c: rename(c["provider"], "region", "regoin")),
    "cache_stoped_nodes": ("gpu.yaml", lambda c: rename(c["provider"], "cache_stopped_nodes", "cache_stoped_nodes")),
    "Groupname": ("gpu.yaml", lambda c: rename(c["provider"]["security_group"], "GroupName", "Groupname")),
    "work_ips": ("local.yaml", lambda c: rename(c["provider"], "worker_ips", "work_ips")),
    "Gpu": ("gpu.yaml", lambda c: rename(c["available_node_types"]["gpu_4"]["resources"], "GPU", "Gpu")),
    "InstanceMarketOption": (
        "gpu.yaml",
        lambda c: rename(node_config(c, "gpu_8"), "InstanceMarketOptions", "InstanceMarketOption"),
    ),
    "ImageID": ("gpu.yaml", lambda c: rename(node_config(c, "head"), "ImageId", "ImageID")),
    "min_worker": ("gpu.yaml", lambda c: rename(c["available_node_types"]["gpu_8"], "min_workers", "min_worker")),
}


def node_config(config: Config, node_type: str) -> Config:
    found: Config = config["available_node_types"][node_type]["node_config"]
    return found


@pytest.mark.parametrize("typo", TYPOS)
def test_the_schema_check_finds_typos(typo: str) -> None:
    name, spoil = TYPOS[typo]
    config = load(name)
    spoil(config)
    assert any(typo in problem for problem in launcher_problems(config))


def test_the_schema_check_is_needed_because_ray_lets_these_pass() -> None:
    config = load("gpu.yaml")
    for typo in ("regoin", "cache_stoped_nodes", "ImageID"):
        TYPOS[typo][1](config)
    prepared(config)


@pytest.mark.parametrize("node_type", ["head", "gpu_4", "gpu_8"])
def test_aws_knows_every_field_of_the_node_config(node_type: str) -> None:
    session = pytest.importorskip("botocore.session", reason="describes AWS's API; in the cluster extra")
    validate = pytest.importorskip("botocore.validate")
    shape = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    request = {**node_config(load("gpu.yaml"), node_type), "MinCount": 1, "MaxCount": 1}
    assert validate.ParamValidator().validate(request, shape).generate_report() == ""
    assert "Unknown" in validate.ParamValidator().validate({**request, "ImageID": "x"}, shape).generate_report()


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


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_package_is_installed_from_the_synced_folder_with_its_extras(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/backlink-ray"] == "."
    installs = [command for command in config["setup_commands"] if "pip install" in command]
    assert any("$HOME/backlink-ray[cluster]" in command for command in installs)
    assert "cluster" in pyproject()["project"]["optional-dependencies"]


# --- Versions ---------------------------------------------------------------------------------------------------

PIN = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)|ray\[default\]==(\d+\.\d+\.\d+)|rayVersion: \"(\d+\.\d+\.\d+)\"")


def ray_pins(text: str) -> list[str]:
    return [version for match in PIN.finditer(text) for version in match.groups() if version]


def ray_floor() -> Version:
    requirements = map(Requirement, pyproject()["project"]["dependencies"])
    ray = next(requirement for requirement in requirements if requirement.name == "ray")
    return Version(next(part.version for part in ray.specifier if part.operator == ">="))


def test_wherever_ray_is_named_it_is_pinned_to_one_version_the_tested_one_or_the_floor() -> None:
    everything = "\n".join(texts().values())
    pins = ray_pins(everything)
    assert len(pins) == len(re.findall(r"rayproject/ray|ray\[default\]|rayVersion", everything)) > 0
    (version,) = {Version(pin) for pin in pins}
    assert version in {Version(metadata.version("ray")), ray_floor()}
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


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_key_and_token_are_given_by_reference(name: str) -> None:
    config = load(name)
    assert set(config["auth"]) <= {"ssh_user", "ssh_private_key"}
    assert config["auth"].get("ssh_private_key", "~/").startswith("~/")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def token_problems(config: Config) -> list[str]:
    """Commands that would start Ray, or leave a login shell, without token authentication."""
    starts = [command for key in START_KEYS for command in config[key] if "ray start" in command]
    bare = [command for command in starts if "export RAY_AUTH_MODE=token;" not in command.split("ray start")[0]]
    login = "echo 'export RAY_AUTH_MODE=token' >> ~/.bashrc"
    return bare + ([] if any(login in command for command in config["setup_commands"]) else ["login shell"])


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_every_start_command_and_the_login_shell_turn_token_authentication_on(name: str) -> None:
    config = prepared(load(name))
    assert all(any("ray start" in command for command in config[key]) for key in START_KEYS)
    assert token_problems(config) == []


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_token_check_finds_a_command_without_it(name: str) -> None:
    for key in (*START_KEYS, "setup_commands"):
        config = load(name)
        config[key] = [command.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled") for command in config[key]]
        assert len(token_problems(config)) == 1, key


def command_of(name: str, key: str, program: str) -> dict[str, str]:
    (command,) = [command for command in load(name)[key] if program in command]
    return options(command, program)


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_ray_starts_with_options_that_it_knows_and_enough_open_files(name: str) -> None:
    known = {option for parameter in ray_cli.commands["start"].params for option in parameter.opts}
    for key in START_KEYS:
        given = command_of(name, key, "ray start")
        assert given
        assert set(given) <= known
        (command,) = [command for command in load(name)[key] if "ray start" in command]
        assert "ulimit -n " in command.split("ray start")[0]


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_dashboard_and_mlflow_listen_on_loopback(name: str) -> None:
    assert command_of(name, "head_start_ray_commands", "ray start")["--dashboard-host"] == "127.0.0.1"
    mlflow = command_of(name, "head_start_ray_commands", "mlflow server")
    assert mlflow["--host"] == "127.0.0.1"
    assert mlflow["--workers"] == "1"  # several processes on a fresh SQLite file fail
    assert mlflow["--backend-store-uri"].startswith("sqlite:///")


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_mlflow_knows_every_option_given_to_it(name: str) -> None:
    mlflow_cli = pytest.importorskip("mlflow.cli")
    known = {option for parameter in mlflow_cli.server.params for option in parameter.opts}
    assert set(command_of(name, "head_start_ray_commands", "mlflow server")) <= known


def test_head_of_the_local_file_announces_the_address_of_the_provider() -> None:
    given = command_of("local.yaml", "head_start_ray_commands", "ray start")
    assert given["--node-ip-address"] == load("local.yaml")["provider"]["head_ip"]


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_workers_join_the_port_that_the_head_opens(name: str) -> None:
    head = command_of(name, "head_start_ray_commands", "ray start")
    worker = command_of(name, "worker_start_ray_commands", "ray start")
    assert worker["--address"] == f"$RAY_HEAD_IP:{head['--port']}"


# --- The page ---------------------------------------------------------------------------------------------------


def readme_commands() -> Iterator[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (CLUSTER / "README.md").read_text(), re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        yield shlex.split(line, comments=True)


def test_the_page_uses_ray_commands_and_options_that_exist() -> None:
    used = [words for words in readme_commands() if words and words[0] == "ray" and words[1] != "job"]
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

    known = {
        "--" + field.replace("_", "-")
        for flags in (SearchFlags, StageResources)
        for field in flags.__dataclass_fields__
    }
    calls = re.findall(r"studies/\w+\.py((?:\s+[\w/.-]+)*)", "\n".join(texts().values()))
    used = {word for call in calls for word in call.split() if word.startswith("--")}
    assert used >= {"--address", "--gpus", "--storage-path"}
    assert used <= known

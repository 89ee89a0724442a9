"""Runner: one RunConfig becomes one run folder, on any executor, from the beginning or from its last checkpoint."""

import dataclasses
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from backlink_ray import provenance
from backlink_ray.data.datasets import Dataset, hold_out
from backlink_ray.data.loader import check_batch_size
from backlink_ray.files import write_whole
from backlink_ray.local.split import split
from backlink_ray.measure.metrics import memory_source
from backlink_ray.measure.timeline import Span, draw
from backlink_ray.methods.build import build_method
from backlink_ray.nets.build import build_network
from backlink_ray.pipeline.controller import StageError, stage_places
from backlink_ray.pipeline.threads import ThreadsExecutor, TurnsExecutor
from backlink_ray.runs.config import ConfigError, RunConfig
from backlink_ray.train.checkpoint import Checkpoints, weights_sha256
from backlink_ray.train.executor import ChunkReport, Executor, Job, LocalExecutor
from backlink_ray.train.optim import CosineSchedule, Recipe

FAILURE, RESULT = "failure.json", "result.json"

EpochCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is carried out: nothing here changes its result.

    Attributes:
        output_dir: the run folder.
        timeline: PNG of when each stage does what; "" draws none.
        stage_timeout_s: longest wait of a stage for its neighbour.
        cpus_per_stage, gpus_per_stage: what Ray reserves for a stage; GPUs 0 where there are none.
        placement_group: an existing one (a Tune trial's), or None.
        on_epoch: called with the metrics of every finished epoch.
    """

    output_dir: Path
    timeline: str = ""
    stage_timeout_s: float = 120.0
    cpus_per_stage: float = 0.25
    gpus_per_stage: float = 1.0
    placement_group: Any = None
    on_epoch: EpochCallback = field(default=lambda _: None)


def choose_executor(
    config: RunConfig, num_gpus: float, num_cpus: float, gpus_per_stage: float = 1.0
) -> tuple[str, str]:
    """Decide what executor "auto" means here; return it and why.

    Args:
        config: asks for local, threads, ray or auto.
        num_gpus, num_cpus: of the cluster, or of this machine where there is none.
        gpus_per_stage: GPUs one stage takes.
    """
    stages = config.num_modules
    if config.executor != "auto":
        return config.executor, "asked for"
    if stages == 1:
        return "local", "K=1 has nothing to spread"
    devices, kind = (stage_places(num_gpus, gpus_per_stage), "GPU") if num_gpus else (num_cpus, "CPU")
    if devices >= stages:
        return "ray", f"{devices:g} {kind} places for K={stages} stages"
    return "local", f"{devices:g} {kind} places are too few for K={stages} stages"


def run(config: RunConfig, dataset: Dataset, options: RunOptions) -> dict[str, Any]:
    """Train one configuration to its end, writing the run folder; return what result.json holds.

    A folder that holds this run's result is not trained again; one that holds its checkpoint goes on from there.

    Raises:
        ConfigError: the folder belongs to another run, or the configuration does not fit data or machine.
        NonFiniteLossError, StageError: the run failed; its folder keeps the last checkpoint.
    """
    folder = _Folder(options.output_dir, config)
    done = folder.result()
    if done:
        return done
    try:
        job = make_job(config, dataset, options)
        with _open_executor(config, job, options) as executor:
            result, spans = _train(config, dataset.digest, job, options, folder, executor)
    except Exception as error:
        folder.fail(str(error), lost=isinstance(error, StageError) and error.lost)
        raise
    if options.timeline and spans:
        _draw(config, result["executor"], spans, Path(options.timeline))
    return result


def make_job(config: RunConfig, dataset: Dataset, options: RunOptions) -> Job:
    """Build network, split, method and data of a run."""
    dataset.check_seed(config.seed)
    network = build_network(
        config.network, num_classes=dataset.num_classes, image_size=dataset.image_size, seed=config.seed
    )
    modules = split(
        network, config.num_modules, config.head, config.remainder, config.balance, config.final_head, config.seed
    )
    train, evaluations = dataset.train, {"test": dataset.test}
    if config.validation_fraction:
        train, evaluations["val"] = hold_out(dataset, config.validation_fraction, config.seed)
    check_batch_size(config.batch_size, len(train))
    steps = config.epochs * (len(train) // config.batch_size)
    return Job(
        modules=modules,
        method=build_method(config, dataset.mean, dataset.std),
        train=train,
        evaluations=evaluations,
        batch_size=config.batch_size,
        lr=CosineSchedule(config.lr, steps, config.warmup_fraction),
        mean=dataset.mean,
        std=dataset.std,
        augmentation=dataset.augmentation,
        augment=config.augment,
        recipe=Recipe(momentum=config.momentum, weight_decay=config.weight_decay),
        seed=config.seed,
        devices=_devices(),
        torch_threads=config.torch_threads,
        stage_timeout_s=options.stage_timeout_s,
        timeline=bool(options.timeline),
    )


def _devices() -> tuple[str, ...]:
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)


def _open_executor(config: RunConfig, job: Job, options: RunOptions) -> Executor:
    gpus, cpus = _within_reach() if config.executor == "auto" else (0.0, 0.0)
    name, why = choose_executor(config, gpus, cpus, options.gpus_per_stage)
    print(f"executor {name}: {why}", file=sys.stderr, flush=True)
    if name == "local" and options.timeline:
        raise ConfigError(
            f"timeline={options.timeline!r} shows stages at work at once, and executor local has one; "
            "use executor threads or ray"
        )
    if name == "ray":
        return _open_ray(job, options)
    local = TurnsExecutor if job.method.replay_size else LocalExecutor
    return {"local": local, "threads": ThreadsExecutor}[name](job)


def _within_reach() -> tuple[float, float]:
    """Return GPUs and CPUs of the Ray cluster that $RAY_ADDRESS names, else of this machine."""
    if not os.environ.get("RAY_ADDRESS"):
        return torch.cuda.device_count(), os.cpu_count() or 1
    import ray

    if not ray.is_initialized():
        start_ray()
    found = ray.cluster_resources()
    return found.get("GPU", 0.0), found.get("CPU", 0.0)


def _open_ray(job: Job, options: RunOptions) -> Executor:
    import ray  # a run on one device needs no Ray

    from backlink_ray.pipeline.actors import RayExecutor, Resources

    if not ray.is_initialized():
        start_ray()
    gpus = options.gpus_per_stage if ray.cluster_resources().get("GPU") else 0.0
    return RayExecutor(job, Resources(cpus=options.cpus_per_stage, gpus=gpus), options.placement_group)


def start_ray(address: str = "") -> None:
    """Join the cluster at `address` or $RAY_ADDRESS, or start a private one on this machine, listening on loopback."""
    import ray

    address = address or os.environ.get("RAY_ADDRESS", "")
    if address:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False)
        return
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    # Ray writes its token readable for everybody.
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def _check_reachable(address: str) -> None:
    """Ask a HOST:PORT for a sign of life: Ray itself tries for three minutes before it says that nobody is there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"address={address!r} does not answer ({error}); start Ray there, or give another") from error


def _train(
    config: RunConfig, digest: str, job: Job, options: RunOptions, folder: "_Folder", executor: Executor
) -> tuple[dict[str, Any], tuple[Span, ...]]:
    checkpoints = Checkpoints(options.output_dir / "checkpoints")
    curve = _resume(checkpoints, executor)
    spans: tuple[Span, ...] = ()
    steps = len(job.train) // config.batch_size
    for epoch in range(len(curve) + 1, config.epochs + 1):
        report = executor.train(steps)
        metrics = _metrics(config, epoch, report, executor)
        curve.append(metrics)
        spans = report.spans
        folder.append(metrics)
        checkpoints.save(executor.state(), {"run_id": config.run_id, "curve": curve})
        if epoch < config.epochs:
            options.on_epoch(metrics)
    result = folder.finish(_result(config, digest, curve, executor, job))
    options.on_epoch(curve[-1])  # after the result is on disk: whoever hears of the last epoch may end this process
    return result, spans


def _resume(checkpoints: Checkpoints, executor: Executor) -> list[dict[str, Any]]:
    found = checkpoints.newest()
    if found is None:
        return []
    executor.load(found[0])
    return list(found[1]["curve"])


def _metrics(config: RunConfig, epoch: int, report: ChunkReport, executor: Executor) -> dict[str, Any]:
    losses = report.losses.mean(dim=1).tolist()
    start = time.perf_counter()
    test = executor.evaluate("test")
    found: dict[str, Any] = {
        "epoch": epoch,
        "test_error_pct": test.error_pct,
        "test_loss": test.loss,
        "train_loss": losses[-1],
        "images_per_s": report.losses.shape[1] * config.batch_size / report.seconds,
        "epoch_s": report.seconds + time.perf_counter() - start,
        "step_ms": 1e3 * report.seconds / report.losses.shape[1],
        "link_ms": 1e3 * max(report.link_s) / report.losses.shape[1],
        "peak_memory_mib": max(report.peak_memory_mib),
        "local_loss": losses,
    }
    if epoch == config.epochs:  # one list a run: CIFAR-100's over 200 epochs would be most of its result
        found["class_error_pct"] = test.class_error_pct
    if config.validation_fraction:
        found["val_error_pct"] = executor.evaluate("val").error_pct
    return found


def _result(
    config: RunConfig, digest: str, curve: list[dict[str, Any]], executor: Executor, job: Job
) -> dict[str, Any]:
    last = {k: v for k, v in curve[-1].items() if k not in ("epoch", "local_loss")}
    rates = sorted(m["images_per_s"] for m in curve)
    return {
        "status": "FINISHED",
        "run_id": config.run_id,
        **last,
        "images_per_s": rates[len(rates) // 2],
        "class_train_images": job.train.labels.bincount(minlength=len(last["class_error_pct"])).tolist(),
        "best_test_error_pct": min(m["test_error_pct"] for m in curve),
        "weights_sha256": weights_sha256(executor.state()),
        "executor": executor.name,
        "memory_source": memory_source(executor.device),
        "dataset_digest": digest,
        "curve": curve,
    }


def _draw(config: RunConfig, executor: str, spans: tuple[Span, ...], path: Path) -> None:
    title = f"{config.network}, {config.run_name}, {config.head} heads, batch {config.batch_size}, executor {executor}"
    draw(spans, path, title)


class _Folder:
    """The run folder: config.yaml, environment.json, metrics.jsonl, checkpoints/, result.json or failure.json."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._claim(config)
        except OSError as error:
            raise ConfigError(
                f"output_dir={str(path)!r} cannot be written ({error.strerror}); give another folder"
            ) from error

    def _claim(self, config: RunConfig) -> None:
        file = self._path / "config.yaml"
        wanted = {"run_id": config.run_id, **dataclasses.asdict(config)}
        if file.exists():
            found = yaml.safe_load(file.read_text()) or {}
            if found.get("run_id") != config.run_id:
                raise ConfigError(
                    f"output_dir={str(self._path)!r} holds run {found.get('run_id')}, not {config.run_id}; give another folder"
                )
        write_whole(file, yaml.safe_dump(wanted, sort_keys=False))
        (self._path / FAILURE).unlink(missing_ok=True)
        write_whole(self._path / "environment.json", json.dumps(provenance.describe(), indent=2))

    def result(self) -> dict[str, Any]:
        """Return the finished run's result, {} if it is not finished."""
        file = self._path / RESULT
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def fail(self, reason: str, *, lost: bool) -> None:
        """Write into failure.json why the run failed, and whether a process or machine was lost, so that it may go on."""
        write_whole(self._path / FAILURE, json.dumps({"status": "LOST" if lost else "FAILED", "reason": reason}))

    def append(self, metrics: dict[str, Any]) -> None:
        """Add one epoch to metrics.jsonl; an epoch that ran again after a crash stands there again, the last one counts."""
        with (self._path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write result.json."""
        write_whole(self._path / RESULT, json.dumps(result, indent=2))
        return result

"""Resources: what a cluster has, and what a trial reserves of it."""

from dataclasses import dataclass

import torch

from backlink_ray.errors import ConfigError
from backlink_ray.pipeline.resources import STAGE, StageResources
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import choose_executor
from backlink_ray.runs.job import engine_of

# The runs per GPU of a study that finds them by a measurement when it starts.
MEASURED = 0


def read_runs_per_gpu(given: int | str) -> int:
    """Return a number of runs, MEASURED for "auto"; ConfigError if it is neither that nor 1 or more."""
    text = str(given)
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise ConfigError(f"runs_per_gpu={text} is out of range; allowed: 1 or more, or auto")
    return MEASURED if text == "auto" else int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResources:
    """A cluster's GPUs and CPUs, what a stage takes of them, and how many trials run at once (0: as many as fit).

    `runs_per_gpu` trials of executor local share a GPU; until they are MEASURED, each has its own.
    """

    num_gpus: float
    num_cpus: float
    max_concurrent: int = 0
    stage: StageResources = STAGE
    runs_per_gpu: int = 1

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the configuration with its executor decided."""
        name, _ = choose_executor(config, self.num_gpus, self.num_cpus, self.stage)
        return config.replace(executor=name)

    def bundles(self, config: RunConfig) -> list[dict[str, float]]:
        """Return the bundles of a trial: its own, and one per stage if the stages are actors."""
        if self.resolve(config).executor == "ray":
            return self.stage.where_gpus_are(self.num_gpus).bundles(config.num_stages)
        if not (self.num_gpus and self.stage.gpus_per_stage):
            return [{"CPU": 1.0}]
        return [{"CPU": 1.0, "GPU": 1.0 / (max(1, self.runs_per_gpu) if self.shares_gpu(config) else 1)}]

    def shares_gpu(self, config: RunConfig) -> bool:
        """Return whether a trial can share a GPU with others: its executor is local, and trials use GPUs."""
        return bool(self.num_gpus and self.stage.gpus_per_stage) and self.resolve(config).executor == "local"

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError if the cluster can never hold a trial, or compute as it asks."""
        on_gpu = self.num_gpus and self.stage.gpus_per_stage
        engine_of(config).check(torch.device("cuda" if on_gpu else "cpu"), torch.float32)
        if self.resolve(config).executor == "ray":
            self.stage.where_gpus_are(self.num_gpus).check(config.num_stages, self.num_cpus, self.num_gpus)

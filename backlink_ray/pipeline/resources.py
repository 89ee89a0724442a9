"""Resources: what Ray reserves for a stage, and whether a cluster can hold a run's stages."""

from dataclasses import dataclass, replace

from backlink_ray.errors import ConfigError

# For the process that drives the stages: it only waits.
DRIVER_CPUS = 0.1
_REMEDY = "use a smaller K, fewer replicas, a fraction per stage, a larger cluster, or executor=local"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResources:
    """What Ray reserves for one stage."""

    cpus_per_stage: float = 0.2
    """CPUs that Ray reserves for a stage. A fraction is enough: a stage on a GPU mostly waits, and small machines have few."""
    gpus_per_stage: float = 1.0
    """GPUs that Ray reserves for a stage, if the cluster has any; a fraction lets stages share one."""

    def __post_init__(self) -> None:
        if not self.cpus_per_stage > 0:
            raise ConfigError(f"cpus_per_stage={self.cpus_per_stage} is out of range; allowed more than 0")
        if not self.gpus_per_stage >= 0:
            raise ConfigError(f"gpus_per_stage={self.gpus_per_stage} is out of range; allowed 0 (on CPUs) or more")

    def where_gpus_are(self, num_gpus: float) -> "StageResources":
        """Return what a stage reserves in a cluster with `num_gpus`: no GPU if the cluster has none."""
        return self if num_gpus else replace(self, gpus_per_stage=0.0)

    def bundles(self, num_stages: int) -> list[dict[str, float]]:
        """Return bundle 0 for the driver and bundle 1 + k for stage k."""
        stage = {"CPU": self.cpus_per_stage} | ({"GPU": self.gpus_per_stage} if self.gpus_per_stage else {})
        return [{"CPU": DRIVER_CPUS}] + [stage] * num_stages

    def stages_on(self, num_gpus: float) -> int:
        """Return how many stages fit on the GPUs; a stage with a fraction never spans two."""
        if not self.gpus_per_stage:
            return 0
        if self.gpus_per_stage >= 1:
            return int(num_gpus / self.gpus_per_stage + 1e-9)
        return int(num_gpus) * int(1 / self.gpus_per_stage + 1e-9)

    def check(self, num_stages: int, num_cpus: float, num_gpus: float) -> None:
        """Raise ConfigError if the cluster can never hold all stages of a run; Ray itself would wait forever."""
        need = DRIVER_CPUS + num_stages * self.cpus_per_stage
        if need > num_cpus + 1e-9:
            raise ConfigError(f"{num_stages} stages need {need:g} CPUs, the cluster has {num_cpus:g}; {_REMEDY}")
        if self.gpus_per_stage and self.stages_on(num_gpus) < num_stages:
            raise ConfigError(
                f"{num_stages} stages need {self.gpus_per_stage:g} GPUs each, the cluster has {num_gpus:g}, "
                f"which hold {self.stages_on(num_gpus)}; {_REMEDY}"
            )


STAGE = StageResources()

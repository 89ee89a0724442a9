"""backlink_ray: train networks as local modules with backward links, in one process or spread over Ray actors."""

import importlib
from typing import TYPE_CHECKING, Any

from backlink_ray.data.augmentation import Augmentation
from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import BacklinkError, ConfigError
from backlink_ray.local.engine import Engine
from backlink_ray.local.module import LocalModule
from backlink_ray.local.predict import predict
from backlink_ray.local.split import split
from backlink_ray.local.weights import load_units
from backlink_ray.methods.backlink import BackLink
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.base import Batch, Method
from backlink_ray.methods.ddg import DDG
from backlink_ray.methods.dgl import DGL
from backlink_ray.methods.dni import DNI
from backlink_ray.methods.greedy import GLL
from backlink_ray.methods.infopro import InfoPro
from backlink_ray.methods.predsim import PredSim
from backlink_ray.nets.build import build_network
from backlink_ray.nets.network import Network
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.network import load_network
from backlink_ray.runs.options import RunOptions
from backlink_ray.train.executor import Job, LocalExecutor
from backlink_ray.train.faults import Fault
from backlink_ray.train.trainer import Trainer, gradients

if TYPE_CHECKING:
    from backlink_ray.pipeline.actors import RayExecutor
    from backlink_ray.runs.runner import run
    from backlink_ray.tuning.search import SearchResult, tune
    from backlink_ray.tuning.space import Space

__all__ = [
    "BP",
    "DDG",
    "DGL",
    "DNI",
    "GLL",
    "Augmentation",
    "BackLink",
    "BacklinkError",
    "Batch",
    "ConfigError",
    "Dataset",
    "Engine",
    "Fault",
    "InfoPro",
    "Job",
    "LocalExecutor",
    "LocalModule",
    "Method",
    "Network",
    "PredSim",
    "RayExecutor",
    "RunConfig",
    "RunOptions",
    "SearchResult",
    "Space",
    "StagePool",
    "StageResources",
    "ThreadsExecutor",
    "Trainer",
    "build_network",
    "gradients",
    "load_dataset",
    "load_network",
    "load_units",
    "predict",
    "run",
    "split",
    "tune",
]

# Imported when they are used: they need Ray, Optuna, MLflow or pyarrow.
_LATER = {
    "RayExecutor": "backlink_ray.pipeline.actors",
    "SearchResult": "backlink_ray.tuning.search",
    "Space": "backlink_ray.tuning.space",
    "run": "backlink_ray.runs.runner",
    "tune": "backlink_ray.tuning.search",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

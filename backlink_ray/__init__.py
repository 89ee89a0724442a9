"""backlink_ray: train networks as local modules with backward links, in one process or spread over Ray actors."""

from backlink_ray.data.augmentation import Augmentation
from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import ConfigError
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
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.network import load_network
from backlink_ray.train.trainer import Trainer, gradients

__all__ = [
    "BP",
    "DDG",
    "DGL",
    "DNI",
    "GLL",
    "Augmentation",
    "BackLink",
    "Batch",
    "ConfigError",
    "Dataset",
    "InfoPro",
    "LocalModule",
    "Method",
    "Network",
    "PredSim",
    "RunConfig",
    "Trainer",
    "build_network",
    "gradients",
    "load_dataset",
    "load_network",
    "load_units",
    "predict",
    "split",
]

"""Ray's object store may be smaller than the messages between stages: Ray then keeps them in files."""

from pathlib import Path

import pytest
import ray

from backlink_ray.data.datasets import load_dataset
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.runner import run
from tests.runs.test_recovery import digest

STORE_BYTES = 80_000_000
MESSAGE_BYTES_PER_IMAGE = 16 * 32 * 32 * 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("batch_size", [400, 1500])  # messages of 26 and 98 MB, of which several are on their way
def test_messages_larger_than_the_object_store_arrive(batch_size: int, tmp_path: Path) -> None:
    config = RunConfig(
        network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=batch_size, epochs=4,
        train_images=batch_size, test_images=20, executor="ray",
    )  # fmt: skip
    data = load_dataset("cifar10-sample", train_images=batch_size, test_images=20)
    run(config, tmp_path / "local", executor="local", dataset=data)
    step_ms = {}
    for store_bytes in (STORE_BYTES, 25 * STORE_BYTES):
        ray.shutdown()
        ray.init(
            address="local", include_dashboard=False, num_cpus=2, num_gpus=0, log_to_driver=False,
            object_store_memory=store_bytes,
        )  # fmt: skip
        try:
            step_ms[store_bytes] = run(config, tmp_path / str(store_bytes), dataset=data)["step_ms"]
        finally:
            ray.shutdown()
        assert digest(tmp_path / str(store_bytes)) == digest(tmp_path / "local")
    print(
        f"messages of {batch_size * MESSAGE_BYTES_PER_IMAGE / 1e6:.0f} MB; ms per step, by bytes of the store: {step_ms}"
    )

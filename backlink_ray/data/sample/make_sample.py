"""Make the embedded sample from the full CIFAR-10: class-balanced, lossless, chosen by seed.

python -m backlink_ray.data.sample.make_sample --data-root DIR [--output FILE]
"""

import argparse
import hashlib
import io
import sys
from pathlib import Path

from torch import Tensor

from backlink_ray.data import choice
from backlink_ray.data.datasets import data_root, load_dataset
from backlink_ray.data.embedded import SAMPLE_FILE
from backlink_ray.data.tensors import LabelledSet
from backlink_ray.errors import DataError

PER_CLASS = {"train": 200, "test": 50}


def choose(labels: Tensor, per_class: int, split: str, seed: int = 0) -> Tensor:
    """Return sorted indices of `per_class` images of every class."""
    return choice.choose(labels, [per_class] * (int(labels.max()) + 1), seed, f"sample/{split}")


def rows(images: LabelledSet, split: str) -> list[dict[str, object]]:
    """Return one row per image: split, index in the original set, label, and the pixels as lossless WebP."""
    from PIL import Image

    found: list[dict[str, object]] = []
    for index in choose(images.labels, PER_CLASS[split], split).tolist():
        buffer = io.BytesIO()
        picture = Image.fromarray(images.inputs[index].permute(1, 2, 0).contiguous().numpy())
        picture.save(buffer, "WEBP", lossless=True, quality=100, method=6, exact=True)
        found.append({"split": split, "index": index, "label": int(images.labels[index]), "webp": buffer.getvalue()})
    return found


def main() -> int:
    """Write the sample and print its sha256, to be copied into embedded.py."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-root", default="", help="folder with cifar-10-batches-py")
    parser.add_argument("--output", type=Path, default=SAMPLE_FILE)
    arguments = parser.parse_args()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        full = load_dataset("cifar10", data_root(arguments.data_root))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = pa.Table.from_pylist([*rows(full.train, "train"), *rows(full.test, "test")])
    pq.write_table(table, arguments.output, compression="none", use_dictionary=["split", "label"])
    print(
        f"{arguments.output}: {table.num_rows} images, sha256 {hashlib.sha256(arguments.output.read_bytes()).hexdigest()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

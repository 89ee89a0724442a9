"""A folder of images, DIR/train/CLASS/* and DIR/test/CLASS/*: train, save, load, predict. Without DIR, a small one is made."""

import sys
from pathlib import Path

import torch
from torchvision.io import write_png

import backlink_ray as bl


def make_folder(folder: Path) -> None:
    """Write 700 of the images that come with the package."""
    sample = bl.load_dataset("cifar10-sample", train_images=500, test_images=200)
    for part, images in (("train", sample.train), ("test", sample.test)):
        for i, (image, label) in enumerate(zip(images.inputs, images.labels.tolist(), strict=True)):
            (folder / part / sample.class_names[label]).mkdir(parents=True, exist_ok=True)
            write_png(image, str(folder / part / sample.class_names[label] / f"{i}.png"))


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "images")
    if not folder.exists():
        make_folder(folder)
    data = bl.Dataset.from_folder(folder, augmentation=bl.Augmentation(pad=4, mode="reflect", flip=True))
    network = bl.build_network("resnet8", num_classes=data.num_classes, image_size=data.image_size)
    trainer = bl.Trainer(bl.split(network, num_modules=2), bl.BackLink(propagation_length=1, alpha=0.5), lr=0.05)
    print(trainer)
    pairs, order = list(zip(data.train.prepared(), data.train.labels, strict=True)), torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(pairs, 25, shuffle=True, generator=order)
    for epoch, losses in enumerate(trainer.fit(loader, epochs=5), start=1):
        print(f"epoch {epoch}: mean local losses {losses.tolist()}")
    torch.save(network.state_dict(), "network.pt")
    image = data.test.prepared()[:1]
    name = data.class_names[bl.predict(network, image).argmax()]
    print(
        f"test error {trainer.evaluate(data.test.prepared(), data.test.labels).error_pct:.2f} %; the first image: {name}"
    )

"""torchvision's ResNet18 as nine units, on real images: K = 3 on threads, or on the executor that is the argument."""

import sys

import torch
from torch import nn
from torchvision.models import resnet18

import backlink_ray as bl


def network(num_classes: int, image_size: int, seed: int) -> bl.Network:
    """Return ResNet18: its stem and its eight blocks as units, its pool and linear map as the classifier."""
    net = resnet18(num_classes=num_classes)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    blocks = [block for group in (net.layer1, net.layer2, net.layer3, net.layer4) for block in group]
    classifier = nn.Sequential(net.avgpool, nn.Flatten(), net.fc)
    return bl.Network([stem, *blocks], classifier, example=torch.zeros(1, 3, image_size, image_size))


if __name__ == "__main__":
    executor = (*sys.argv[1:], "threads")[0]
    config = bl.RunConfig(
        network="resnet18:network", num_modules=3, propagation_length=1, alpha=0.5, epochs=3, batch_size=25, lr=0.05,
        train_images=500, test_images=200,
    )  # fmt: skip
    result = bl.run(config, f"runs/resnet18-{executor}", executor=executor)
    print(f"{executor}: test error {result['test_error_pct']:.2f} %, weights {result['weights_sha256'][:12]}")
    data = bl.load_dataset("cifar10-sample", test_images=200).test
    wrong = bl.predict(bl.load_network(f"runs/resnet18-{executor}"), data.prepared()).argmax(dim=1) != data.labels
    print(f"the same network, loaded: test error {100 * wrong.float().mean():.2f} %")

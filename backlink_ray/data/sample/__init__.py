"""The embedded sample: 2,500 real CIFAR-10 images, and the script that made it."""

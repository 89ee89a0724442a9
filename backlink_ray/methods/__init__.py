"""Training methods: each decides what a local module's gradients are."""

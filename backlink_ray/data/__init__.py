"""Data sets as tensors, and the batches drawn from them."""

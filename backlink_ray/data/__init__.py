"""Data sets as uint8 tensors, and batches drawn from them."""

"""Data sets as uint8 tensors, and the batches drawn from them."""

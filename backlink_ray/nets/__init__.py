"""Networks as ordered lists of units."""

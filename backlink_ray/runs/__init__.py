"""One run: its configuration, its folder and its result."""

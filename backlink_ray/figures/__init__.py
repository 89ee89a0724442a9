"""The figures of the paper: style, captions, files."""

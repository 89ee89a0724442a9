"""Studies: Ray Tune and Optuna."""

import os
from pathlib import Path

try:
    Path.home()
except RuntimeError:
    # A user that its container does not know. Ray Tune cannot be imported then, although nothing here needs its default folder.
    os.environ["HOME"] = "/nonexistent"  # as for system users: whoever does need one is told that it cannot be written

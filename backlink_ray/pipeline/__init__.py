"""The pipeline: one stage per local module, as threads of one process or as Ray actors."""

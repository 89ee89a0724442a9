"""The pipeline: one stage a local module, as threads of one process or as Ray actors."""

"""Network: the trained network of a run folder."""

from pathlib import Path

from backlink_ray.errors import StorageError
from backlink_ray.files import local_path
from backlink_ray.local.weights import check_weights, copy_weights
from backlink_ray.nets.network import Network
from backlink_ray.runs.folder import CHECKPOINTS, read_config, recorded_run_id
from backlink_ray.runs.job import build_modules, engine_of
from backlink_ray.train.checkpoint import newest


def load_network(run_folder: str | Path) -> Network:
    """Return the network of a run with the weights of its newest checkpoint, on the CPU; network(x) is the last head's answer.

    `split` cuts it again, into as many modules as you like, and leaves units and classifier as trained as they are.

    Args:
        run_folder: the --output-dir of a run, or RESULTS/runs/RUN_ID of a study; the run may be going on.

    Raises:
        ConfigError: it is no run folder, of another format, or its network is another one now.
        StorageError: it has no checkpoint yet.
    """
    folder = local_path(run_folder, "run_folder")
    config, facts = read_config(folder)
    found = newest(folder / CHECKPOINTS, recorded_run_id(folder))
    if found is None:
        raise StorageError(f"{folder / CHECKPOINTS} has no good checkpoint; one is written after every epoch")
    network, _ = build_modules(config, **facts)
    engine_of(config).arrange_weights([network])  # it rounds as the run did
    own = {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    check_weights(own, found[0].weights, f"the network {config.network!r} that the run trained")
    copy_weights(own, found[0].weights)
    return network

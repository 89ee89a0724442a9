"""Ray cluster of this process: joined at an address, or started on this machine for this process alone."""

import atexit
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from backlink_ray import processes, signals
from backlink_ray.errors import ClusterError, ConfigError, first_line
from backlink_ray.importing import digest, folders, sources
from backlink_ray.runs.token import made, provide_token

# A worker that imports torch and the user's modules starts in seconds; a busy cluster takes longer.
WORKER_TIMEOUT_S = 120.0
_PROBE_TIMEOUT_MS = 2000  # Ray also waits 5 s for each of two connections


def start_once(address: str = "", paths: Mapping[str, str] = MappingProxyType({})) -> None:
    """Connect this process to Ray, unless it is connected, so that workers can import what the user's paths name.

    Args:
        address: of the cluster; default $RAY_ADDRESS, else a private cluster is started on this machine's loopback address.
        paths: import paths, by the field that names them.

    Raises:
        ConfigError: the cluster cannot be used, or its workers cannot import one of the paths, or import another file.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS", "")
    own = [path for name, path in paths.items() if digest(path, name)]
    if ray.is_initialized():
        pass
    elif address not in ("", "local"):
        # Another machine has none of the user's files: Ray copies those that this process has imported.
        _join(address, {"py_modules": sources(own)} if own else {})
    else:
        path = os.pathsep.join([*folders(own), *filter(None, [os.environ.get("PYTHONPATH")])])
        _start({"env_vars": {"PYTHONPATH": path}} if own else {})
    if paths:
        _check_workers(paths)


def _join(address: str, environment: dict[str, Any]) -> None:
    import ray

    _withdraw_token()
    if "://" not in address:
        _check_reachable(address)
    try:
        with _own_handlers():
            ray.init(address=address, log_to_driver=False, runtime_env=environment or None)
    except (ValueError, OSError, RuntimeError) as error:
        raise _unusable(address, error) from error
    except Exception as error:  # Ray raises it as such when it gives up waiting
        raise ClusterError(f"the Ray cluster at {address!r} could not be joined: {first_line(error)}") from error


def _withdraw_token() -> None:
    """Undo what `provide_token` and Ray have set in the environment: a cluster that is joined has its own token, or none."""
    is_mode_of_ray = made.get(os.environ.get("RAY_AUTH_TOKEN_PATH", ""))
    if is_mode_of_ray is None:  # the user's, or an earlier process's
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # Ray's stub leaves them out

    del os.environ["RAY_AUTH_TOKEN_PATH"]
    mode = os.environ.pop("RAY_AUTH_MODE", "") if is_mode_of_ray else ""
    Config.initialize("")  # first, so that no thread of Ray's looks for a token that is gone
    AuthenticationTokenLoader.instance().reset_cache()
    if mode and AuthenticationTokenLoader.instance().has_token(
        ignore_auth_mode=True
    ):  # the mode may be the user's by now
        os.environ["RAY_AUTH_MODE"] = mode
        Config.initialize("")


def _start(environment: dict[str, Any]) -> None:
    import ray

    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.WARNING}
    provide_token()
    processes.end_leftovers()
    atexit.register(_shut_down)  # also if the start is interrupted
    with _loopback(), _own_handlers(), _own_groups(), processes.remembered():
        try:
            ray.init(address="local", runtime_env=environment or None, **quiet)
        except Exception as error:  # Ray raises it as such when it gives up waiting
            raise ClusterError(f"Ray could not be started on this machine: {first_line(error)}") from error


def _shut_down() -> None:
    """End Ray before the interpreter does, and then what Ray leaves."""
    import ray

    ray.shutdown()
    processes.end_remembered()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep Ray from handling SIGTERM in a command: its own handlers end in a bare SystemExit, or a C++ trace."""
    from ray._private import utils

    handler = (lambda _handler: None) if signals.handling() else utils.set_sigterm_handler
    try:
        with _replaced(utils, "set_sigterm_handler", handler):
            yield
    finally:
        signals.handle_again()


def _own_groups() -> AbstractContextManager[None]:
    """Start Ray's processes in process groups of their own: a signal to a command's group would end them before it has saved."""
    from ray._private import services

    return _replaced(services, "ConsolePopen", partial(services.ConsolePopen, process_group=0))


def _loopback() -> AbstractContextManager[None]:
    """Have Ray take 127.0.0.1 for this machine's address, as it does on macOS: its processes then listen there only.

    `ray.init(_node_ip_address="127.0.0.1")` does not: Ray replaces it by the address that other machines reach.
    """
    from ray._private import ray_constants

    return _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False)


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Have a part of Ray use another value inside `with`."""
    found = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, found)


def _check_workers(paths: Mapping[str, str]) -> None:
    """Import the paths in a worker: a fresh process, on another machine if the cluster has one."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(digest)
    for name, path in paths.items():
        way_out = (
            "put its folder on PYTHONPATH of every machine, or call ray.shutdown() first, so that Ray starts anew with it, and "
            "on a cluster that this process joins itself ray.init(address=..., runtime_env={'py_modules': "
            f"{sources([path])}}})"
        )
        try:
            there = ray.get(task.remote(path, name), timeout=WORKER_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise ConfigError(f"{name}={path!r} cannot be imported by Ray's workers ({reason}); {way_out}") from error
        if there != digest(path, name):
            raise ConfigError(f"{name}={path!r} is another file for Ray's workers than here; {way_out}")


def _check_reachable(address: str) -> None:
    """Raise ConfigError if no Ray cluster answers: Ray itself tries for minutes before it gives up."""
    from ray._private.services import canonicalize_bootstrap_address

    try:  # "auto" is looked up, and 127.0.0.1 becomes this node's address
        reached = canonicalize_bootstrap_address(address) or ""
    except (ValueError, OSError) as error:
        raise _unusable(address, error) from error
    host, _, port = reached.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (ValueError, OSError, OverflowError) as error:
        raise ConfigError(
            f"address={address!r} does not answer at {reached} ({error}); start Ray there, or give another address"
        ) from error
    _check_answer(address, reached)


def _check_answer(address: str, reached: str) -> None:
    """Raise ConfigError if it is not Ray that listens there, or Ray wants another token: Ray says neither of the two."""
    from ray._private.authentication import authentication_token_setup as authentication
    from ray._raylet import InnerGcsClient  # type: ignore[attr-defined]  # Ray's stub leaves it out
    from ray.exceptions import AuthenticationError, RpcError

    try:
        if address == "auto":  # only then does Ray send a token without being told to
            authentication.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        # Without a token, the client would abort this process.
        authentication.ensure_token_if_auth_enabled(create_token_if_missing=False)
        InnerGcsClient.standalone(reached, None, _PROBE_TIMEOUT_MS)
    except AuthenticationError as error:
        raise ConfigError(
            f"address={address!r} is a Ray cluster that wants a token, and this process has none or another one; set "
            "RAY_AUTH_MODE=token, and put the cluster's token into ~/.ray/auth_token or the file that RAY_AUTH_TOKEN_PATH names"
        ) from error
    except RpcError as error:
        raise ConfigError(
            f"address={address!r} does not answer as Ray does ({error}); give HOST:PORT of a Ray cluster"
        ) from error


def _unusable(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"address={address!r} cannot be used ({first_line(error)}); give HOST:PORT of a Ray cluster")

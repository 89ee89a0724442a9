"""Importing: what users name as "module:attribute", with errors of one line, and the digest of the file that defines it."""

import hashlib
import importlib
import inspect
import site
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from backlink_ray.errors import ConfigError

# A process keeps running the code it has imported, whatever the file says later.
_loaded: dict[str, tuple[Any, str]] = {}
_in_progress: set[str] = set()


def is_path(name: str) -> bool:
    """Return whether a name is an import path: built-in names have no colon."""
    return ":" in name


def load(path: str, field: str) -> Any:
    """Return what an import path names, as `python -m` would find it: in the working folder, the script's, or PYTHONPATH.

    Args:
        path: "module:attribute", for example "my_model:network"; what it names can be called.
        field: named by errors.

    Raises:
        ConfigError: it cannot be imported, here or in a fresh process, or cannot be called.
    """
    if path not in _loaded:
        found = _find(path, field)
        _loaded[path] = (found, _digest(found, sys.modules[path.partition(":")[0]]))
    return _loaded[path][0]


def call(path: str, field: str, **arguments: Any) -> Any:
    """Return what the function of an import path returns; its own exceptions pass, as their traceback is the user's.

    Raises:
        ConfigError: it does not take these arguments by name.
    """
    function = load(path, field)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{field}={path!r} does not take the arguments {', '.join(arguments)} ({error}); give it these, or **_"
        ) from error
    return function(**arguments)


def parameters_of(path: str, field: str) -> set[str]:
    """Return the names of the arguments that what an import path names takes."""
    return set(inspect.signature(load(path, field)).parameters)


def digest(path: str, field: str) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of the file that is named, and of the one that defines it.

    Files of installed distributions do not count; "" if no other is left.
    """
    load(path, field)
    return _loaded[path][1]


def folders(paths: Iterable[str]) -> list[str]:
    """Return the folders from which a fresh process imports what some loaded import paths name."""
    tops = (sys.modules[path.partition(":")[0].partition(".")[0]] for path in paths if _loaded[path][1])
    return list(dict.fromkeys(str(_place(top).parent) for top in tops))


def sources(paths: Iterable[str]) -> list[str]:
    """Return the files and packages in those folders that this process has imported: what the import paths need elsewhere."""
    own = set(folders(paths))
    places = [_place(m) for name, m in list(sys.modules.items()) if "." not in name and name != "__main__" and _file(m)]
    return sorted(str(place) for place in set(places) if str(place.parent) in own and place.name != __package__)


def _find(path: str, field: str) -> Any:
    name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise ConfigError(f"{field}={path!r} is no import path; give MODULE:NAME, for example my_model:network")
    if name == "__main__":
        raise ConfigError(
            f"{field}={path!r} is defined in the script or notebook itself, which no other process can import; move it to a "
            f"file such as my_model.py and give my_model:{attribute}"
        )
    module = _import(name, path, field)
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        names = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == name and callable(value)]
        problem = f"is a {type(found).__name__}, which cannot be called" if found is not None else "does not exist"
        raise ConfigError(f"{field}={path!r} {problem}; {module.__file__} defines {', '.join(names) or 'nothing'}")
    return found


def _import(name: str, path: str, field: str) -> ModuleType:
    if name in _in_progress:
        raise ConfigError(
            f"{field}={path!r} names a script that trains when it is imported; put what it runs under "
            'if __name__ == "__main__":'
        )
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the file may be younger than Python's list of the folder
    _in_progress.add(name)
    try:
        module = importlib.import_module(name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{field}={path!r} cannot be imported: {_reason(error, name)}") from error
    finally:
        _in_progress.discard(name)
    if not Path(_file(module) or "-").exists():  # in an archive, say
        raise ConfigError(
            f"{field}={path!r} has no file that another process could import; move it to a file such as my_model.py"
        )
    return module


def _reason(error: BaseException, name: str) -> str:
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and (name == missing or name.startswith(f"{missing}.")):
        return (
            f"there is no module {missing} in {Path.cwd()} or on PYTHONPATH; run from its folder, or add that to PYTHONPATH "
            "(of every machine, on a cluster)"
        )
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}; try python -c 'import {name}'"


def _file(module: ModuleType) -> str:
    """Return a module's file, of a namespace package its folder, "" if it has none."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")


def _place(module: ModuleType) -> Path:
    """Return the file of a module, or the folder of a package."""
    is_package = hasattr(module, "__path__") and getattr(module, "__file__", None)
    place = Path(_file(module)).absolute()
    return place.parent if is_package else place


def _digest(found: Any, module: ModuleType) -> str:
    files = [_file(module)]  # which may only say where it comes from: "from my_nets import small as network"
    with suppress(TypeError):  # an instance, or a function in C
        files.append(inspect.getfile(inspect.unwrap(found)))
    places = dict.fromkeys(Path(file).resolve() for file in files)
    own = [p for p in places if p.is_file() and not any(p.is_relative_to(folder) for folder in _installed())]
    return hashlib.sha256(b"".join(p.read_bytes() for p in own)).hexdigest()[:16] if own else ""


def _installed() -> set[Path]:
    """Return the folders of Python and of installed distributions, which have versions instead of digests."""
    user = site.getusersitepackages() if site.ENABLE_USER_SITE else ""
    python = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return {Path(folder).resolve() for folder in (*python, *site.getsitepackages(), user) if folder}

"""The paths that an engine in a sandbox sees: the same on every machine, since snapshots hold them."""

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coldstart.sandbox.mounts import Mount
from coldstart.sandbox.root_layout import RootLayout, system_layout
from engines import wire
from engines.errors import EngineError
from engines.spec import ModelSpec
from engines.wire import ENGINE_DIR

_TORPOR = Path("/opt/torpor")
_PYTHON = _TORPOR / "python"
_ENVIRONMENT = _TORPOR / "environment"
_SOURCE = _TORPOR / "source"
_CRIU = _TORPOR / "criu"
_PACKAGES_OF_ENGINES = ("engines", "coldstart")
MODEL = ENGINE_DIR.with_name("model")
_CHAT_TEMPLATE = ENGINE_DIR.with_name("chat_template")
_ARGUMENTS = ENGINE_DIR.with_name("arguments")
ADAPTERS = ENGINE_DIR.with_name("adapters")
WORK = ENGINE_DIR.with_name("work")
CACHE = ENGINE_DIR.with_name("cache")
"""Folders of the sandbox: adapters, which the engine may read; CRIU's logs, which it may not; on a GPU, what
is compiled for the model."""
_MOST_LINKED_FILES = 200


@dataclass(frozen=True, slots=True)
class EngineRoot:
    """What the root folder of an engine holds, and how Python is run there.

    ``interpreter``: Python's path; ``source``: the folder of Torpor's packages; ``variables``: what else
    Python needs in its environment. Without a sandbox they are the host's.
    """

    layout: RootLayout
    interpreter: Path
    source: Path
    variables: Mapping[str, str]


def host_root() -> EngineRoot:
    """The paths of an engine that sees the host's files."""
    usual = Path(sys.prefix) / "bin" / "python"  # by one name, whichever link this process was started by
    interpreter = usual if usual.exists() else Path(sys.executable)
    return EngineRoot(RootLayout({}), interpreter, _host_source(), {})


def _host_source() -> Path:
    return Path(__file__).resolve().parents[2]


def sandbox_root(criu: Path | None) -> EngineRoot:
    """The paths of an engine in a sandbox. ``criu``: the folder of an unpacked CRIU.

    The virtual environment there has files of its own, since the host's name folders of the host: the
    interpreter finds it by ``pyvenv.cfg``.
    """
    executable = Path(sys.executable).resolve()
    python = executable.parent.parent
    interpreter = _PYTHON / "bin" / executable.name
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    source = _host_source()
    binds = {
        _PYTHON: python,
        _ENVIRONMENT / library: Path(sysconfig.get_paths()["purelib"]),
        **{_SOURCE / name: source / name for name in _PACKAGES_OF_ENGINES},
    }
    if criu is not None:
        binds[_CRIU] = criu.resolve()
    layout = replace(
        system_layout(gpu=not wire.on_cpu()).with_binds(binds),
        files={
            _ENVIRONMENT
            / "pyvenv.cfg": f"home = {interpreter.parent}\ninclude-system-site-packages = false\n"
        },
    )
    links = {**layout.links, _ENVIRONMENT / "bin" / "python": str(interpreter)}
    variables = {"USER": "engine", "LOGNAME": "engine"}  # its uid has no entry in /etc/passwd
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(_library_folders(python))
    return EngineRoot(replace(layout, links=links), _ENVIRONMENT / "bin" / "python", _SOURCE, variables)


def _library_folders(python: Path) -> list[str]:
    """The folder of Python's own library, if it has one, and the system's that LD_LIBRARY_PATH names here."""
    name = str(sysconfig.get_config_var("INSTSONAME") or "")
    folders = [str(_PYTHON / "lib")] if ".so" in name and (python / "lib" / name).is_file() else []
    inherited = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return folders + [folder for folder in inherited if Path(folder).is_relative_to("/usr")]


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model as its engine sees it: the specification with the sandbox's paths, and what is at these."""

    spec: ModelSpec
    mounts: tuple[Mount, ...]

    @property
    def binds(self) -> Mapping[Path, Path]:
        """The model's files on the host, by their paths in the sandbox."""
        return {mount.target: mount.source for mount in self.mounts}


def model_view(spec: ModelSpec) -> ModelView:
    """The model's folder, its chat template, and files that its ``engine_args`` name.

    Raises `EngineError` for a folder with too many links.
    """
    mounts: list[Mount] = []
    changes: dict[str, object] = {}
    if spec.source is not None:
        changes["source"] = MODEL
        mounts += _folder(spec.source) if spec.source.is_dir() else ()
    if spec.chat_template is not None:
        target = _CHAT_TEMPLATE / spec.chat_template.name
        changes["chat_template"] = target
        if spec.chat_template.exists():
            mounts.append(_mount(spec.chat_template, target))
    words = []
    for word in spec.engine_args:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        path = Path(value)
        if path.is_absolute() and path.exists():
            target = _ARGUMENTS / str(len(mounts)) / path.name
            mounts.append(_mount(path, target))
            word = f"{option}{equals}{target}"
        words.append(word)
    return ModelView(replace(spec, engine_args=tuple(words), **changes), tuple(mounts))  # type: ignore[arg-type]


def _mount(path: Path, target: Path) -> Mount:
    status = path.stat()
    return Mount(path.resolve(), target, owner=(status.st_uid, status.st_gid))


def _folder(folder: Path) -> list[Mount]:
    """The folder itself, or each file of it if it holds links that lead out, as a hub's cache does."""
    root = folder.resolve()
    links = [path for path in root.rglob("*") if path.is_symlink()]
    if all(path.resolve().is_relative_to(root) for path in links):
        return [_mount(root, MODEL)]
    files = [path for path in root.rglob("*") if path.is_file()]
    if len(files) > _MOST_LINKED_FILES:
        raise EngineError(
            f"the folder of the model {folder} has {len(files)} files, some of them links that lead out of "
            f"it; the most is {_MOST_LINKED_FILES}: copy the model into a folder without such links"
        )
    return [_mount(path, MODEL / path.relative_to(root)) for path in files]


def unreadable(view: ModelView) -> Path | None:
    """A file that an engine cannot read unless the file system maps its owner; None if there is none.

    Reads the modes of all files: for the message about an engine that did not start.
    """
    for mount in view.mounts:
        for path in (mount.source, *mount.source.rglob("*")):
            mode = path.stat().st_mode
            if not mode & (0o001 if path.is_dir() else 0o004):
                return path
    return None

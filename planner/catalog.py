"""Names to specs: shipped models, devices and cluster profiles, and files of the same formats.

A name is looked up without regard to case, with underscores and spaces read as dashes: first as the
file ``<name>.json``, then among the ``aliases`` of every file. An alias that several files claim (``A100``)
is refused with the candidates. Whatever is no name may be a path.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from planner.cluster.spec import ClusterProfile, DeviceSpec
from planner.documents import DOCUMENT_SUFFIXES, read_document, validate
from planner.errors import InputError, UnknownName, nearest_names
from planner.model.spec import ModelSpec

__all__ = [
    "data_directory",
    "device_names",
    "load_device",
    "load_model",
    "load_profile",
    "model_names",
    "profile_names",
    "read_document",
    "save_atomic",
]

DataKind = Literal["models", "hardware_profiles"]
Spec = TypeVar("Spec", bound=BaseModel)

_PACKAGE = Path(__file__).resolve().parent
_LISTING = {
    "model": "planner models list",
    "device": "planner hardware list",
    "cluster": "planner hardware list",
}
_HUGGING_FACE_KEYS = ("model_type", "architectures", "text_config")
_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,99}")


def data_directory(kind: DataKind) -> Path:
    """The folder of shipped files: ``_data`` inside an installed package, beside it in a checkout.

    Raises InputError when neither exists, which means a broken installation.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        if (root / kind).is_dir():
            return root / kind
    raise InputError(f"the shipped {kind} files are missing", hint="reinstall the package")


def model_names() -> list[str]:
    """Names of the shipped models, sorted."""
    return _names(data_directory("models"))


def device_names() -> list[str]:
    """Names of the shipped devices, sorted."""
    return _names(data_directory("hardware_profiles") / "gpus")


def profile_names() -> list[str]:
    """Names of the shipped cluster profiles, sorted."""
    return _names(data_directory("hardware_profiles"))


def load_model(name_or_path: str) -> tuple[ModelSpec, list[str]]:
    """A model by name, alias, file or folder holding ``config.json``, with warnings.

    A file with ``block_kinds`` is of our format; one with ``model_type``, ``architectures`` or
    ``text_config`` is a Hugging Face configuration, whose reader may warn. Raises InputError for a file
    that is neither or breaks a rule, UnknownName for a name that is nowhere.
    """
    path = _find("model", name_or_path, data_directory("models"))
    shadowed = []
    if path.parent == data_directory("models") and _exists(Path(name_or_path) / "config.json"):
        shadowed.append(
            f"the built-in {path.stem} is read, not the folder here: for that write ./{name_or_path}"
        )
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    document = read_document(path)
    if "block_kinds" in document:
        return validate(ModelSpec, document, str(path)), shadowed
    if any(key in document for key in _HUGGING_FACE_KEYS):
        from planner.model.hugging_face.reader import read_hugging_face_config

        return read_hugging_face_config(document, file=str(path))
    _refuse_other_kind(document, "model", path)
    raise InputError(
        "neither a model of this project (no 'block_kinds') nor a Hugging Face configuration "
        "(no 'model_type', 'architectures' or 'text_config')",
        file=str(path),
        allowed=["block_kinds", *_HUGGING_FACE_KEYS],
        hint="give a model file or a config.json",
    )


def load_device(name: str) -> DeviceSpec:
    """A device by name, alias or file. Raises InputError, UnknownName."""
    return _load(DeviceSpec, "device", name, data_directory("hardware_profiles") / "gpus")


def load_profile(name_or_path: str) -> ClusterProfile:
    """A cluster profile by name, alias or file. Raises InputError, UnknownName."""
    return _load(ClusterProfile, "cluster", name_or_path, data_directory("hardware_profiles"))


def is_cluster_document(name: str) -> bool:
    """Whether ``name`` is a file of ours that describes a cluster. Raises InputError for a broken file."""
    path = Path(name)
    return path.is_file() and "node_groups" in read_document(path)


def check_writable(path: str, read: Iterable[str | None] = ()) -> None:
    """Raises InputError early when ``save_atomic`` would refuse ``path``: before a search, not after.

    ``read``: names and files the command reads; none of them may be written over.
    """
    if not path:
        raise InputError("the output file name is empty", hint="use -o plan.json")
    target = Path(os.path.realpath(path))
    if target.is_file() and any(name and os.path.realpath(name) == str(target) for name in read):
        raise InputError(
            "is read by this command, and writing would replace it",
            file=path,
            hint="name another file to write",
        )
    if target.is_dir():
        raise InputError("is a directory, not a file", file=path, hint="give a file name inside it")
    if not target.parent.is_dir():
        raise InputError(
            f"the folder {str(target.parent)!r} does not exist",
            file=path,
            hint="create the folder first, or name a file in an existing one",
        )


def save_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8: the whole file or nothing.

    The text goes to a temporary file beside the target, which then takes its place; links are followed
    and an existing file keeps its permissions. Raises InputError when the folder is missing, when the
    target is not a regular file, or when the disk refuses.
    """
    check_writable(str(path))
    file, target = str(path), Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InputError("is not a regular file", file=file, hint="name a regular file to write to")
    try:
        data = text.encode("utf-8")
        _replace(target, data)
    except UnicodeEncodeError as error:
        raise InputError(f"the text cannot be written as UTF-8: {error.reason}", file=file) from None
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror or error}", file=file) from None


def save_directory(directory: str | Path, files: dict[str, str]) -> None:
    """Write all ``files`` (name -> text) into ``directory``, creating it; each file whole or not at all.

    Raises InputError when the directory is a file or cannot be created.
    """
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the directory: {error.strerror or error}",
            file=str(target),
            hint="name a directory that can be created, for example -o launch",
        ) from error
    for name, text in files.items():
        save_atomic(target / name, text)


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _load(spec: type[Spec], kind: str, name: str, directory: Path) -> Spec:
    path = _find(kind, name, directory)
    document = read_document(path)
    _refuse_other_kind(document, kind, path)
    return validate(spec, document, str(path))


def _refuse_other_kind(document: dict[str, Any], kind: str, path: Path) -> None:
    """Say plainly that, for example, a device file was given where a cluster is wanted."""
    found = document.get("kind", "model" if "block_kinds" in document else kind)
    if found != kind:
        raise InputError(
            f"describes a {found}, but a {kind} is wanted",
            file=str(path),
            pointer="/kind" if "kind" in document else "",
            allowed=kind,
            hint=f"give a {kind} file or name",
        )


def _find(kind: str, name: str, directory: Path) -> Path:
    """The file a name, alias or path means: shipped names first, then aliases, then the file system."""
    if not name.strip():
        raise InputError(f"the {kind} name is empty", hint=f"give a name such as {_example(directory)!r}")
    if not name.lower().endswith(DOCUMENT_SUFFIXES):
        shipped = _find_shipped(kind, name, directory)
        if shipped is not None:
            return shipped
    path = Path(name)
    if name.lower().endswith(DOCUMENT_SUFFIXES) or _exists(path):
        return path
    hint = "no file of that path exists either" if re.search(r"[/\\]", name) else ""
    known = _names(directory)
    if "/" in name or not nearest_names(name, known):
        known += _written_aliases(directory)
    raise UnknownName(
        kind,
        name,
        known,
        hint=hint or f"{_LISTING[kind]} shows the names; a path to a {kind} file works too",
    )


def _find_shipped(kind: str, name: str, directory: Path) -> Path | None:
    key = _normalise(name)
    if _SAFE_NAME.fullmatch(key) and (directory / f"{key}.json").is_file():
        return directory / f"{key}.json"
    candidates = _alias_index(directory).get(key, ())
    if len(candidates) > 1:
        raise InputError(
            f"{kind} {name!r} is ambiguous: it may mean {', '.join(candidates)}",
            allowed=list(candidates),
            hint=f"use one of these names, for example {candidates[-1]!r}",
        )
    return directory / f"{candidates[0]}.json" if candidates else None


def _normalise(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _example(directory: Path) -> str:
    return next(iter(_names(directory)), "NAME")


def _names(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.json"))


@cache
def _aliases(directory: Path) -> tuple[tuple[str, str], ...]:
    """(alias as written, name of its file) over every file of ``directory``."""
    found = []
    for name in _names(directory):
        for alias in read_document(directory / f"{name}.json").get("aliases", []):
            found.append((str(alias), name))
    return tuple(found)


@cache
def _alias_index(directory: Path) -> dict[str, tuple[str, ...]]:
    index: dict[str, tuple[str, ...]] = {}
    for alias, name in _aliases(directory):
        key = _normalise(alias)
        if name not in index.get(key, ()):
            index[key] = (*index.get(key, ()), name)
    return index


def _written_aliases(directory: Path) -> list[str]:
    return [alias for alias, _ in _aliases(directory)]

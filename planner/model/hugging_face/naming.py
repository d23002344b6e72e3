"""A model's name from what the file says about itself or from where it lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

GENERIC = {"", "config", "model", "models", "checkpoint", "text-config"}


def slug(text: str) -> str:
    """Lower case, letters, digits, dots and dashes only."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def model_name(config: Mapping[str, Any], file: str) -> str:
    """The last part of ``_name_or_path``, else the directory the file lies in, else the file's stem.

    A Hugging Face cache path (models--owner--name/snapshots/...) gives the repository's name.
    """
    named = config.get("_name_or_path")
    if isinstance(named, str):
        name = slug(PurePosixPath(named.replace("\\", "/").rstrip("/")).name)
        if name not in GENERIC:
            return name
    path = PurePosixPath(file.replace("\\", "/"))
    for part in path.parts:
        if part.startswith("models--"):
            return slug(part.split("--")[-1])
    parent = slug(path.parent.name)
    if path.stem == "config" and parent not in GENERIC:
        return parent
    return slug(path.stem) or "model"

"""The versions of installed packages."""

from __future__ import annotations

import importlib.metadata


def version_of(package: str) -> str:
    """Return a package's version, or "not installed": a source checkout runs without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

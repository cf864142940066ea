"""Start of the inference server: ``python -m airhub.serve``, or ``python FOLDER`` where only this folder is mounted."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = "airhub_serve"


def _module(name: str) -> ModuleType:
    """Import a module of this folder under a package name that no user's code has.

    The folder itself leaves ``sys.path``: a model's own ``worker.py`` or ``codec.py`` must not meet ours.
    """
    folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
    spec = importlib.util.spec_from_file_location(
        NAME, str(folder / "__init__.py"), submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    package = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{NAME}.{name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        sys.exit(_module("worker").main(*map(int, sys.argv[2:4])))
    sys.exit(_module("server").main())

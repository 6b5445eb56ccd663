"""Put first on `PYTHONPATH` by `fgclip-doctor watch -- COMMAND`: Python imports it at its start, in every process.

It starts the recorder once torch has been imported, and then runs the `sitecustomize` that would have been imported in
its place. Whatever goes wrong in here costs one line, and the process goes on.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[2]  # where `fgclip_doctor` is, for another interpreter


def _chain() -> None:
    """The `sitecustomize` that ours hides: it takes over the name, too."""
    there = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    spec = PathFinder.find_spec("sitecustomize", there)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


class _AfterTorch(MetaPathFinder):
    """A finder that lets the others find torch, and has `_start` called when torch's own code has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _start()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _start() -> None:
    try:
        if importlib.util.find_spec("fgclip_doctor") is None:
            sys.path.append(str(PACKAGE))
        from fgclip_doctor.live.launcher import start_recorder

        start_recorder()
    except Exception as error:  # noqa: BLE001 - the training must go on, whatever is wrong with us
        print(f"fgclip-doctor: not watching ({type(error).__name__}: {error})", file=sys.stderr, flush=True)


if "FGCLIP_DOCTOR_RECORD" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())
_chain()

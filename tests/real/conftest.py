"""Runs that the real trainer made, each trained once a session, however many workers share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kept import Kept

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    own = tmp_path_factory.getbasetemp()
    return Kept((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "real")


@pytest.fixture
def _quiet_on_one_thread() -> Iterator[None]:
    import torch
    from transformers.utils import logging

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    torch.set_num_threads(threads)


@pytest.fixture
def base(kept: Kept, _quiet_on_one_thread: None) -> Path:
    """A plain CLIP, trained from scratch until it matches the pictures with their captions."""
    from tests.real.trainer_run import pretrain

    return kept.once("base", pretrain)


@pytest.fixture
def trained(kept: Kept, base: Path) -> Callable[[str], Path]:
    """The run with a given fault; without one, the sound run."""
    from tests.real.trainer_run import Recipe, train

    def run(fault: str = "") -> Path:
        return kept.once(f"run-{fault or 'sound'}", lambda path: train(path, base, Recipe(fault=fault)))

    return run


@pytest.fixture
def trained_as_pickles(kept: Kept, trained: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same runs with their weights as pytorch_model.bin."""
    from tests.real.trainer_run import Recipe, as_pickles

    def run(fault: str = "") -> Path:
        source = trained(fault)
        return kept.once(f"{source.name}-pickles", lambda path: as_pickles(source, path, Recipe(fault=fault)))

    return run

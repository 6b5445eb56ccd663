"""Our step against the benchmark's plain one, which has transformers' towers and samples its regions."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fgclip_doctor.core.losses import total
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.training.data import collate

PATH = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
THEIR_NAMES = {
    "text_model.embeddings.position_embedding_ori.weight": "kept",
    "text_model.embeddings.position_embedding_res.weight": "stretched",
    "text_filip_projection.weight": "text_filip_projection",
    "logit_scale_finegraind": "region_scale",
    "logit_scale_hardneg": "hard_scale",
}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_step", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_and_gradients_are_those_of_the_plain_step(benchmark: ModuleType) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = FgclipModel(benchmark.SMALL).train()
    with torch.no_grad():  # away from init, where the long and the short head and the two long tables are copies
        for parameter in ours.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    plain = benchmark.Plain(ours, "eager")
    samples = benchmark.samples(3, ours.config)

    terms = ours(collate(samples, benchmark.Numbers(ours.config.text_config)), step=0)
    losses = plain(*benchmark.plain_inputs(samples, ours.config.text_config))
    assert list(terms) == list(losses)
    for name, term in terms.items():
        assert term.loss.item() == pytest.approx(losses[name].item(), abs=1e-5)

    torch.autograd.backward(total(terms))
    torch.autograd.backward(torch.stack([term.weight * losses[name] for name, term in terms.items()]).sum())
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = theirs[THEIR_NAMES.get(name, f"clip.{name}")].grad
        assert parameter.grad is not None
        assert gradient is not None
        assert (parameter.grad - gradient).norm() <= 1e-4 * (gradient.norm() + 0.01), name


def test_the_table_says_what_was_compared(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "peak_megabytes", lambda name, arguments: 1.0)  # it starts a process for each
    benchmark.report(
        Namespace(
            device="cpu",
            preset="small",
            batch=2,
            steps=1,
            attention="sdpa",
            compile=False,
            checkpointing=True,
            alone=False,
        )
    )
    table = capsys.readouterr().out
    rows = {words[0]: words[1:] for line in table.splitlines() if (words := line.split())}
    assert rows["plain"][1] == "1.00"
    for name in ("global", "global_short", "region", "hard"):
        plain, ours = map(float, rows[name])
        assert ours == pytest.approx(plain, abs=1e-5)

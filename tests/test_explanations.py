"""What `explain` says of every rule: whole, the same as its page, and with code that runs."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fgclip_doctor_checks
from fgclip_doctor import Cause, Check, Finding, Run, Severity, check, explanations
from fgclip_doctor.core.bank import MemoryBank
from fgclip_doctor.registry import installed_causes

RULES = fgclip_doctor_checks.CHECKS
NAMES = {rule.code: rule.name for rule in RULES}
ids = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)


class Tiny(nn.Module):
    """What the snippets use of a model: FG-CLIP's names, over four features."""

    def __init__(self) -> None:
        super().__init__()
        self.text_model = nn.Linear(8, 8)
        for name in ("visual_projection", "text_projection", "text_filip_projection", "roi_projection"):
            setattr(self, name, nn.Linear(8, 8, bias=False))
        for name in ("logit_scale", "logit_scale_finegraind", "logit_scale_hardneg"):
            setattr(self, name, nn.Parameter(torch.tensor(math.log(1 / 0.07))))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.roi_projection(self.visual_projection(images)), dim=-1)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        texts = self.text_filip_projection(self.text_projection(self.text_model(images)))
        scale = self.logit_scale + self.logit_scale_finegraind + self.logit_scale_hardneg
        return F.cross_entropy(scale * self.encode_image(images) @ texts.T, torch.arange(len(images)))


def world() -> dict[str, Any]:
    """What every snippet may take as given, as a training loop has it."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    unit = {name: F.normalize(torch.randn(4, 8), dim=-1) for name in ("image", "text", "region")}
    features = {f"{name}_features": rows.requires_grad_() for name, rows in unit.items()}
    corners = torch.rand(4, 2) / 2
    bank = MemoryBank(8, size=16, warmup=0, clock="step")
    bank.enqueue(unit["region"].detach(), unit["text"].detach(), torch.arange(10, 14))
    model.register_module("bank", bank)
    logits = 14.3 * features["image_features"] @ features["text_features"].T
    return {
        **{"torch": torch, "nn": nn, "F": F, "math": math, "model": model, "optimizer": optimizer, "bank": bank},
        **{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0), **features},
        **{"batch": torch.randn(4, 8), "loader": [torch.randn(4, 8) for _ in range(4)], "batch_size": 4},
        **{"compute_loss": model.loss, "accumulation": 2, "step": 60, "warmup_steps": 50, "usual_norm": 1.0},
        **{"caption_ids": torch.arange(4), "scale": 14.3, "logits": logits, "targets": torch.arange(4)},
        **{"block": nn.Linear(8, 8), "hidden": torch.randn(2, 8), "rows": unit["region"].detach()},
        **{"encode_again": unit["image"].detach(), "queue": torch.zeros(6, 8), "pointer": 3, "size": 6},
        **{"boxes": torch.cat([corners, corners + 0.2], 1), "pixel_boxes": torch.rand(4, 4) * 200},
        **{"group_features": torch.randn(4, 11, 8), "group_mask": torch.ones(4, 11, dtype=torch.bool)},
        **{"micro_batches": [torch.randn(2, 8) for _ in range(2)], "all_text_features": torch.randn(4, 8)},
    }


def code(rule: Check, section: str) -> str:
    (snippet,) = re.findall(r"```python\n(.*?)```", rule.guide[section], re.DOTALL)
    return str(snippet)


def run(rule: Check, section: str, namespace: dict[str, Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code(rule, section), f"{rule.code} {section}", "exec"), namespace)


@ids
def test_every_rule_has_its_formula_and_its_fix_in_code(rule: Check) -> None:
    assert list(rule.guide) == ["Formula", "Trainer", "PyTorch"]
    assert "```text\n" in rule.guide["Formula"]
    for section in ("Trainer", "PyTorch"):
        assert max(map(len, code(rule, section).splitlines())) <= 120


@ids
def test_the_fix_in_plain_pytorch_runs(rule: Check) -> None:
    run(rule, "PyTorch", world())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # its name before version 6
@ids
def test_the_fix_for_the_trainer_runs(rule: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    namespace = world()
    namespace |= {"Trainer": transformers.Trainer, "TrainerCallback": transformers.TrainerCallback}
    namespace["TrainingArguments"] = partial(transformers.TrainingArguments, use_cpu=True)
    run(rule, "Trainer", namespace)
    state = SimpleNamespace(global_step=60)
    for made in [one for one in namespace.values() if isinstance(one, type)]:
        if made is not transformers.TrainerCallback and issubclass(made, transformers.TrainerCallback):
            _call_hooks(made(), state, namespace)


def _call_hooks(callback: Any, state: SimpleNamespace, namespace: dict[str, Any]) -> None:
    """Every hook that the callback has of its own, once, as the Trainer calls it after a backward pass."""
    namespace["model"].loss(namespace["batch"]).backward()
    arguments = SimpleNamespace(warmup_steps=60, per_device_train_batch_size=4)
    control = SimpleNamespace(should_training_stop=False)
    for name in [name for name in vars(type(callback)) if name.startswith("on_")]:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(callback, name)(arguments, state, control, model=namespace["model"], logs={"loss": 0.5})


@ids
def test_a_rule_is_explained_whole(rule: Check) -> None:
    shown = explanations.plain(rule, installed_causes(), NAMES)
    page = explanations.markdown(rule, installed_causes(), NAMES)
    for title in ("Why it hurts", "How it is measured", "The fix", "In plain PyTorch", "Sources"):
        assert f"\n{title}\n" in shown
        assert f"\n## {title}\n" in page
    assert "```" not in shown
    assert "\n\n\n" not in shown
    assert code(rule, "PyTorch").strip().splitlines()[0] in shown


def test_links_go_to_pages_and_issues_and_never_into_code() -> None:
    rule = copy.copy(RULES[0])
    rule.__dict__["sections"] = {"Why": "see FGD201 and openai/CLIP#83"}
    rule.__dict__["guide"] = {"PyTorch": "```python\nx = 'FGD201'  # openai/CLIP#83\n```"}
    page = explanations.markdown(rule, [Cause("FGD102", rule.code, "it is so")], NAMES)
    assert "See [FGD201](FGD201.md)" in page
    assert "[openai/CLIP#83](https://github.com/openai/CLIP/issues/83)" in page
    assert "x = 'FGD201'  # openai/CLIP#83" in page
    assert "- [FGD102](FGD102.md) parameter-not-in-optimizer: it is so" in page


def test_a_rule_with_a_free_docstring_is_shown_as_it_is() -> None:
    @check("LAB001", "a-rule", Severity.INFO)
    def rule(run: Run) -> Iterator[Finding]:
        """Something is off.

        Only prose.
        """
        yield from ()

    assert explanations.plain(rule, [], {}) == "LAB001 a-rule (info)\n\nSomething is off.\n\nOnly prose.\n"

"""What programs say in words, as they print it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgclip_doctor.run import Remark
from fgclip_doctor.sources import load, remarks


def remark(tmp_path: Path, text: str) -> Remark:
    (tmp_path / "train.log").write_text(text)
    [found] = load([tmp_path / "train.log"]).remarks
    return found


@pytest.mark.parametrize(
    ("line", "kind", "names"),
    [
        (
            "/opt/open_clip/factory.py:388: UserWarning: QuickGELU mismatch between final model config "
            "(quick_gelu=False) and pretrained tag 'openai' (quick_gelu=True).",
            "activation",
            ("False", "True"),
        ),
        (
            "UserWarning: These pretrained weights were trained with QuickGELU activation but the model config does "
            'not have that enabled. Consider using a model config with a "-quickgelu" suffix or enable with a flag.',
            "activation",
            (),
        ),
        (
            "Some weights of FGCLIPModel were not initialized from the model checkpoint at openai/clip-vit-base-p16 "
            "and are newly initialized: ['text_filip_projection.weight', 'logit_scale_hardneg']",
            "new-weights",
            ("text_filip_projection.weight", "logit_scale_hardneg"),
        ),
        (
            "\x1b[1mvision_model.encoder.layers.{0, 1}.mlp.fc1.bias\x1b[0m | \x1b[31mMISSING\x1b[0m    | ",
            "new-weights",
            ("vision_model.encoder.layers.{0, 1}.mlp.fc1.bias",),
        ),
        (
            "Some weights of the model checkpoint at runs/stage2 were not used when initializing FGCLIPModel: "
            "['logit_scale_finegraind']",
            "not-taken",
            ("logit_scale_finegraind",),
        ),
        ("logit_scale_hardneg | UNEXPECTED |  | ", "not-taken", ("logit_scale_hardneg",)),
        ("_IncompatibleKeys(missing_keys=[], unexpected_keys=['logit_scale_region'])", "not-taken", None),
        ('        Unexpected key(s) in state_dict: "logit_scale_region", "head.bias".', "not-taken", None),
        ("  Training with DataParallel so batch size has been adjusted to: 1,024", "data-parallel", ("1,024",)),
        (
            "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768",
            "step-skipped",
            (),
        ),
        ("Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 32768.0", "step-skipped", ()),
        ("NOTE: gradient overflow detected, ignoring gradient, setting loss scale to: 64.0", "step-skipped", ()),
        ("get fail image /data/part-3/000123.jpg", "image-replaced", ()),
        ("WARNING: could not open a/b.png (truncated file), using a black image instead", "image-replaced", ()),
    ],
)
def test_known_lines(tmp_path: Path, line: str, kind: str, names: tuple[str, ...] | None) -> None:
    found = remark(tmp_path, f"Num examples = 10\n{line}\nstep 1 loss 2.5\n")
    assert (found.kind, found.source.line, len(found.steps)) == (kind, 2, 1)
    assert found.names == names if names is not None else "logit_scale_region" in found.names


@pytest.mark.parametrize(
    "line",
    [
        "The projection layer and logit scale weights `['visual_projection.weight']` are newly initialized.",
        "All the weights of CLIPModel were initialized from the model checkpoint at openai/clip.",
        "image 17 of 20: missing caption, skipped",
        "failed to load image 000123.jpg, taking another sample",
        "step 3: no overflow, no step skipped",
    ],
)
def test_what_says_something_else(line: str) -> None:
    assert remarks.said(line) is None


def test_every_line_of_a_kind_counts_at_the_step_of_the_record_before_it(tmp_path: Path) -> None:
    fail = "get fail image {}/x.jpg\n"
    text = (fail.format("a") + "step 10 loss 2.0\n" + fail.format(17) + fail.format("b")) * 2 + "step 20 loss 1.9\n"
    text += fail.format("c")
    found = remark(tmp_path, text)
    assert found.source.line == 1
    assert found.steps.tolist() == [0, 10, 10, 10, 10, 10, 20]


def test_names_that_differ_in_their_numbers_alone(tmp_path: Path) -> None:
    names = [f"text_model.layers.{{0, 1}}.mlp.fc{place}.bias" for place in (1, 2)]
    found = remark(tmp_path, "".join(f"{name} | MISSING | \n" for name in names))
    assert found.names == tuple(names)


def test_lines_beside_nothing_else_are_read_too(tmp_path: Path) -> None:
    assert remark(tmp_path, "get fail image a.jpg\n" * 3).steps.tolist() == [0, 0, 0]


def test_a_skipped_step_still_tells_its_scale(tmp_path: Path) -> None:
    line = "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768\n"
    (tmp_path / "train.log").write_text(f"step 1 loss 2.5\n{line}step 2 loss 2.4\n")
    run = load([tmp_path / "train.log"])
    assert run.series["Attempted_loss_scale"].values.tolist() == [65536]

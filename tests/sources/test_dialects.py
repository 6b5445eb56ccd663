"""What real logs taught: how a number is told from its neighbours where the words alone leave it open."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgclip_doctor.run import Run
from fgclip_doctor.sources import load, text_log
from fgclip_doctor.terms import Term, terms

FIXTURES = Path(__file__).parent / "fixtures"


def log(tmp_path: Path, *lines: str | bytes) -> Run:
    path = tmp_path / "run.log"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return text_log.read(path)


def points(run: Run, name: str = "loss") -> list[tuple[int, float]]:
    series = run.series[name]
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_an_epoch_that_comes_out_even_is_a_time_too(tmp_path: Path) -> None:
    heading = ["  Num examples = 64", "  Num update steps per epoch = 8"]
    run = log(tmp_path, *heading, "{'loss': '5', 'epoch': '0.5'}", "{'loss': '4', 'epoch': '1'}")
    assert points(run) == [(4, 5.0), (8, 4.0)]


def test_a_date_without_its_year_is_no_count(tmp_path: Path) -> None:
    run = log(
        tmp_path, *(f"11/23 14:45:1{step} - INFO - Epoch(train) [1][{step}/12]  loss: {step}.5" for step in (3, 6))
    )
    assert points(run) == [(3, 3.5), (6, 6.5)]


def test_a_global_count_does_not_begin_anew_with_the_epoch(tmp_path: Path) -> None:
    lines = [f"Global Steps: {step}/24 | Train Epoch: {1 + step // 13} | Loss: {step}.5" for step in (6, 12, 18, 24)]
    assert points(log(tmp_path, *lines), "Loss") == [(6, 6.5), (12, 12.5), (18, 18.5), (24, 24.5)]


def test_an_epoch_of_which_only_the_end_is_logged(tmp_path: Path) -> None:
    run = log(tmp_path, "Epoch 1/2", "12/12 - 0s - loss: 2.5", "Epoch 2/2", "12/12 - 0s - loss: 1.5")
    assert points(run) == [(12, 2.5), (24, 1.5)]


def test_a_bar_drawn_again_is_no_new_epoch(tmp_path: Path) -> None:
    bar = " 50%|#####     | 8/16 [00:01<00:01, 8.00it/s]"
    run = log(tmp_path, bar, "{'loss': '4', 'epoch': '1'}", bar, "100%|##########| 16/16 [00:02<00:00, 8.00it/s]")
    assert points(run) == [(8, 4.0)]
    assert run.events == []


def test_colours_right_before_a_number(tmp_path: Path) -> None:
    assert points(log(tmp_path, "\x1b[1m12/24\x1b[0m - \x1b[32mloss\x1b[0m: \x1b[1m1.5\x1b[0m")) == [(12, 1.5)]


def test_the_mean_of_an_epoch_in_fairseq(tmp_path: Path) -> None:
    run = log(
        tmp_path,
        "2021-03-01 12:01:00 | INFO | train_inner | epoch 001:    100 / 1102 loss=12.6, num_updates=100",
        "2021-03-01 12:02:00 | INFO | train | epoch 001 | loss 13.5 | num_updates 1102",
    )
    assert points(run) == [(100, 12.6)]
    assert points(run, "mean/loss") == [(100, 13.5)]


def test_an_evaluation_among_json_lines_whose_step_is_an_epoch(tmp_path: Path) -> None:
    run = log(
        tmp_path,
        '{"loss": 2.5, "iter": 12, "step": 12}',
        '{"accuracy": 0.5, "step": 1}',
        '{"loss": 1.5, "iter": 24, "step": 24}',
    )
    assert points(run) == [(12, 2.5), (24, 1.5)]
    assert points(run, "eval/accuracy") == [(12, 0.5)]
    assert run.events == []


def test_lightning_winds_its_bar_back_draws_it_with_old_values_and_checks_its_sanity() -> None:
    run = load([FIXTURES / "lightning" / "terminal.log"])
    assert run.events == []
    assert run.roles == {"loss.total": "train_loss"}
    steps = run.series["train_loss"].steps.tolist()  # batches, over both epochs
    assert steps == sorted(set(steps))
    assert steps[-1] == 48
    whole = load([FIXTURES / "lightning"]).series["train_loss"]
    assert whole.steps.tolist() == list(range(1, 25, 2))  # those of the table, which are finer


def test_the_mean_of_a_whole_run_is_no_loss_of_a_step(tmp_path: Path) -> None:
    assert log(tmp_path, "{'train_loss': '3.855', 'epoch': '3'}").roles == {}
    assert load([FIXTURES / "transformers" / "lines.log"]).roles == {"loss.total": "loss"}


def test_encodings_mixed_in_one_file(tmp_path: Path) -> None:
    lines = ["Début", "step 10 loss 3.0 — α"], ["Début", "step 20 loss 2.0 é"], ["step 30 loss 1.0 🙂"]
    encoded = [line.encode("utf-8") for line in lines[0]]
    encoded += [line.encode("latin-1") for line in lines[1]]
    encoded += [
        line.encode("utf-8").decode("latin-1").encode("utf-8") for line in lines[2]
    ]  # read wrong, written again
    assert points(log(tmp_path, *encoded)) == [(10, 3.0), (20, 2.0), (30, 1.0)]


@pytest.mark.parametrize("said", ["logit_scale: 2.6592", "Logit Scale: 14.285", "logit_scale=2.6592 (exp 14.285)"])
def test_a_scale_as_logarithm_or_not(tmp_path: Path, said: str) -> None:
    path = tmp_path / "train.log"
    path.write_text("".join(f"step {step} | {said} | global loss: 1.5\n" for step in range(1, 5)))
    run = load([path], facts={"micro_batch": "8", "world_size": "1", "dimension": "64"})
    (term,) = terms(run)
    assert isinstance(term, Term)
    assert term.scale == pytest.approx(14.285, rel=1e-4)

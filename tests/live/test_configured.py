"""A training's own objects, from which its configuration is read."""

import argparse

from torch import nn, optim
from transformers import TrainerState

from fgclip_doctor.live.configured import configurations
from fgclip_doctor.live.subject import Subject


class Options(argparse.Namespace):
    """As some argument parsers make them."""


def test_arguments_are_found_wherever_they_are_kept_and_of_whatever_class() -> None:
    kept = [argparse.Namespace(bank_size=128, token="a-secret"), Options(warmup_steps=7)]
    model = nn.Linear(2, 2)
    found = list(configurations(Subject([("", model)], [optim.SGD(model.parameters(), lr=0.1)])))
    assert ("Namespace", {"bank_size": 128}) in found
    assert ("Options", {"warmup_steps": 7}) in found
    assert len(kept) == 2


def test_the_length_that_epochs_came_to_is_found() -> None:
    state = TrainerState(max_steps=340, num_train_epochs=2)
    model = nn.Linear(2, 2)
    found = list(configurations(Subject([("", model)], [optim.SGD(model.parameters(), lr=0.1)])))
    assert ("TrainerState", {"max_steps": state.max_steps}) in found

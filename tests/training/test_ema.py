"""The weight average follows the trained weights by the published recurrence, and nothing else changes it."""

from __future__ import annotations

import torch
from torch import nn

from yolofleet.specs.hyperparameters import recipe
from yolofleet.training.loop.schedule import averaging_decay
from yolofleet.training.loop.update import WeightAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_the_average_is_the_recurrence_over_every_floating_entry_of_the_state() -> None:
    trained, hyperparameters = model(), recipe("p5")
    average = WeightAverage(trained, hyperparameters)
    expected = {name: value.double() for name, value in trained.state_dict().items()}
    for update in range(1, 40):
        with torch.no_grad():
            for value in trained.state_dict().values():
                value += 1 if value.dtype == torch.int64 else torch.randn_like(value)
        average.update(update)
        decay = averaging_decay(hyperparameters, update)
        for name, value in trained.state_dict().items():
            expected[name] = expected[name] * decay + value.double() * (1 - decay)
    found = average.model.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert found["1.num_batches_tracked"] == 0, "a counter is no weight"


def test_the_average_is_a_model_of_its_own_ready_to_evaluate() -> None:
    trained = model().train()
    average = WeightAverage(trained, recipe("p5"))
    assert not average.model.training and trained.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    before = trained[0].weight.detach().clone()
    average.model[0].weight.fill_(7.0)
    assert torch.equal(trained[0].weight, before)


def test_the_average_follows_weights_that_are_loaded_into_the_same_model() -> None:
    trained = model()
    average = WeightAverage(trained, recipe("p5"))
    average.update(1)
    trained.load_state_dict({name: torch.ones_like(value) for name, value in trained.state_dict().items()})
    for update in range(100_000, 100_000 + 4):
        old = average.model[0].weight.clone()
        average.update(update)
        decay = averaging_decay(recipe("p5"), update)
        torch.testing.assert_close(average.model[0].weight, old * decay + 1 - decay, rtol=1e-5, atol=1e-6)

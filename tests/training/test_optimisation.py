"""Optimisers, schedules, the moving average: what they do to a model's weights and to its learning rate."""

import copy

import pytest
import torch
from torch import nn

from training.models import Classifier, build_network
from training.optimisation import build_optimizer, build_schedule, moving_average
from training.settings import TrainSettings


def classifier(name: str = "resnet") -> Classifier:
    return Classifier(build_network(name, 4, 16), (0.5,) * 3, (0.25,) * 3)


def rates(**options: object) -> list[float]:
    """The learning rate of every step of 10 epochs of 10 steps, relative to the highest one."""
    settings = TrainSettings(epochs=10, learning_rate=0.5, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = build_schedule(optimizer, settings, 10)
    values = []
    for _ in range(100):
        values.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        schedule.step()
    return values


def test_cosine_warms_up_then_falls_to_zero() -> None:
    values = rates(schedule="cosine", warmup_epochs=1)
    assert values[0] == pytest.approx(0.1)
    assert max(values) == pytest.approx(values[10])
    assert values[10] == pytest.approx(1)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[55] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.001


def test_onecycle_rises_and_falls_and_wastes_no_step() -> None:
    values = rates(schedule="onecycle", warmup_epochs=3)
    assert values[0] == pytest.approx(1 / 25)
    assert 28 <= values.index(max(values)) <= 30
    assert max(values) == pytest.approx(1)
    assert 0 < values[-1] < 0.01


def test_step_falls_to_a_tenth() -> None:
    values = rates(schedule="step", step_epochs=4, warmup_epochs=0)
    assert [round(values[step], 4) for step in (0, 39, 40, 79, 80, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_constant_is_constant_after_the_warmup() -> None:
    values = rates(schedule="constant", warmup_epochs=0.5)
    assert values[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert set(values[5:]) == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 5])
def test_a_run_of_one_step_has_a_schedule(schedule: str, warmup_epochs: float) -> None:
    settings = TrainSettings(epochs=1, schedule=schedule, warmup_epochs=warmup_epochs)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    build_schedule(optimizer, settings, 1)
    assert optimizer.param_groups[0]["lr"] > 0


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    """With a gradient of zero, decay alone moves a weight."""
    model = classifier()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = build_optimizer(model, TrainSettings(optimizer=name, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (parameter.ndim == 1), key


def test_the_backbone_learns_slower_than_a_new_head() -> None:
    model = classifier("efficientnet_lite0")
    optimizer = build_optimizer(model, TrainSettings(pretrained=True, learning_rate=0.1, backbone_rate=0.01))
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    head = {id(parameter) for parameter in model.head_parameters()}
    assert len(head) == 2
    assert {rate[key] for key in head} == {0.1}
    assert {rate[key] for key in rate if key not in head} == {0.1 * 0.01}


def test_the_moving_average_follows_weights_and_statistics() -> None:
    model = classifier()
    average = moving_average(model, decay=0.9)
    average.update_parameters(model)
    first = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 1
    average.update_parameters(model)
    weight = 1 - 2 / 11  # the second update: d = (1 + 1) / (10 + 1)
    for name, tensor in average.module.state_dict().items():
        expected = first[name] + (weight if tensor.is_floating_point() else 1)
        assert torch.allclose(tensor, expected), name

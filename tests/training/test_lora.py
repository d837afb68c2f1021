"""Low-rank adapters on convolutions."""

import torch
from torch import nn

from training.lora import add_adapters, merge_adapters
from training.resnet import build


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("fast_resnet", 3, {"widths": [16, 32, 32]}).eval()


def test_adapters_start_as_no_change_and_are_all_that_is_trained_beside_the_head() -> None:
    model = network()
    pictures = torch.randn(2, 3, 32, 32)
    before = model(pictures)
    add_adapters(model, rank=4)
    torch.testing.assert_close(model(pictures), before)
    trained = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad and "head" not in name}
    assert trained == {"up", "down"}
    of_head = {name for name, p in model.named_parameters() if p.requires_grad and "head" in name}
    assert of_head == {"head.weight"}


def test_a_merged_network_is_an_ordinary_one_with_the_same_answers() -> None:
    model = network()
    names = list(model.state_dict())
    filters = model.state_dict()["blocks.1.conv2.weight"].clone()
    add_adapters(model, rank=4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pictures = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        optimizer.zero_grad()
        model(pictures).square().sum().backward()
        optimizer.step()
    adapted = model(pictures)
    merge_adapters(model)
    torch.testing.assert_close(model(pictures), adapted)
    assert sorted(model.state_dict()) == sorted(names)
    change = model.state_dict()["blocks.1.conv2.weight"] - filters
    assert 1 <= int(torch.linalg.matrix_rank(change.flatten(1), rtol=1e-4)) <= 4

"""Networks that look at several scales."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from training.errors import InputError
from training.layers import head_of
from training.pyramid import Pyramid
from training.resnet import build

ARCHITECTURES: dict[str, dict[str, Any]] = {"fast_resnet": {"widths": [8, 16, 16]}, "resnet20": {"width": 8}}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_level_sees_the_picture_at_its_scale(architecture: str) -> None:
    torch.manual_seed(0)
    single = build(architecture, 3, ARCHITECTURES[architecture]).eval()
    head = head_of(single)
    width = head.in_features
    weight = head.weight.detach().clone()
    picture = torch.randn(2, 3, 64, 64)
    expected = [single(F.avg_pool2d(picture, 2)), single(picture)]
    both = Pyramid.over(single, 2).eval()
    for level, wanted in enumerate(expected):
        with torch.no_grad():
            both.head.weight.zero_()
            both.head.weight[:, level * width : (level + 1) * width] = weight
        torch.testing.assert_close(both(picture), wanted, rtol=1e-4, atol=1e-5)


def test_a_pyramid_is_built_from_its_arguments() -> None:
    network = build("fast_resnet", 4, {"widths": [8, 16, 16], "levels": 2})
    assert isinstance(network, Pyramid)
    assert network.head.in_features == 32
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    again = build("fast_resnet", 4, {"widths": [8, 16, 16], "levels": 2})
    again.load_state_dict(network.state_dict())
    assert not isinstance(build("fast_resnet", 4, {"levels": 1}), Pyramid)
    with pytest.raises(InputError, match="levels"):
        build("fast_resnet", 4, {"levels": 0})


def test_the_first_layer_of_its_trunk_is_set_from_the_pictures() -> None:
    network = build("fast_resnet", 4, {"widths": [8, 16, 16], "levels": 2})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare = network.prepare
    assert callable(prepare)
    prepare(torch.randn(8, 3, 64, 64))
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["trunk.whiten.weight"]

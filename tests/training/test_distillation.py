"""A teacher's answers and the loss they give."""

import torch
from torch import Tensor, nn

from training.distillation import Teacher
from training.normalisation import Normalisation


class Echo(nn.Module):
    """Answers with the mean of each channel, and remembers what it was shown."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.mean((2, 3))


OWN = Normalisation((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
STUDENT = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_it_sees_pictures_as_it_was_trained_on() -> None:
    answers = Teacher(Echo(), OWN, 32, STUDENT).answers(STUDENT(IMAGES))
    torch.testing.assert_close(answers, OWN(IMAGES).mean((2, 3)))
    assert not answers.requires_grad


def test_it_sees_them_in_its_own_size() -> None:
    echo = Echo()
    Teacher(echo, OWN, 48, STUDENT).answers(STUDENT(IMAGES))
    assert echo.seen.shape == (4, 3, 48, 48)


def test_the_penalty_is_that_of_the_paper() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    soft, wanted = (logits / 4).softmax(1), (OWN(IMAGES).mean((2, 3)) / 4).softmax(1)
    distance = (wanted * (wanted.log() - soft.log())).sum(1).mean()
    found = Teacher(Echo(), OWN, 32, STUDENT, weight=0.7, temperature=4.0)(STUDENT(IMAGES), logits)
    torch.testing.assert_close(found, 0.7 * 16 * distance)


def test_agreement_costs_nothing() -> None:
    logits = OWN(IMAGES).mean((2, 3))
    found = Teacher(Echo(), OWN, 32, STUDENT, weight=3.0)(STUDENT(IMAGES), logits)
    torch.testing.assert_close(found, torch.tensor(0.0), atol=1e-5, rtol=0)

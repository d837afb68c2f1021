"""Learning from a trained network's answers (Hinton et al. 2015, arXiv:1503.02531)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.normalisation import Normalisation


@dataclass(frozen=True)
class Teacher:
    """A trained network whose answers another one learns from: a penalty of that one's run.

    Attributes:
        network: in evaluation mode, on the device of the run.
        normalise: what it was trained with.
        size: side of its input in pixels.
        student: what the pictures of the run go through.
        weight: of the penalty, beside the loss of the labels.
        temperature: divides the logits of both.
        precision: number format of the teacher's forward pass.
    """

    network: nn.Module
    normalise: Normalisation
    size: int
    student: Normalisation
    weight: float = 1.0
    temperature: float = 4.0
    precision: torch.dtype = torch.float32

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """The divergence of both distributions at the temperature, times its square, which keeps gradients of one size.

        Args:
            images: float [N, 3, H, W], normalised for the student.
            logits: the student's, float [N, classes].
        """
        distance = F.kl_div(
            (logits / self.temperature).log_softmax(1),
            (self.answers(images) / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        return self.weight * self.temperature**2 * distance

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Logits float [N, classes] for the student's input, float [N, 3, H, W]."""
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=images.device).view(1, 3, 1, 1)
            for values in (self.student.mean, self.student.std, self.normalise.mean, self.normalise.std)
        )
        seen = (images * std + mean - own_mean) / own_std
        if seen.shape[2] != self.size:
            seen = F.interpolate(seen, size=(self.size,) * 2, mode="bilinear", antialias=True)
        with torch.autocast(seen.device.type, self.precision, enabled=self.precision != torch.float32):
            answers: Tensor = self.network(seen.contiguous(memory_format=torch.channels_last))
        return answers.float()

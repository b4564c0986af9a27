"""Students whose buffers move in every forward in train mode, besides those of batch norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def instance(classes: int, channels: int) -> nn.Module:
    """[B, C, 8, 8] -> [B, K]; instance norm with running statistics."""
    norm = nn.InstanceNorm2d(5, affine=True, track_running_stats=True)
    return nn.Sequential(
        nn.Conv2d(channels, 5, 3, stride=2, bias=False), norm, nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(45, classes)
    )


def spectral(classes: int, channels: int) -> nn.Module:
    """[B, C, 8, 8] -> [B, K]; a weight over an estimate of its norm that each forward improves."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, 5, 3, stride=2)), nn.Tanh(), nn.Flatten(), nn.Linear(45, classes)
    )


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", nn.Parameter().new_zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x, scaled by a number that grows with each call in training."""
        if self.training:
            self.calls += 1
        return x * (1 + self.calls)


def unsaved(classes: int, channels: int) -> nn.Module:
    """[B, C, 8, 8] -> [B, K]; it counts its calls in a buffer that its state dict has not."""
    return nn.Sequential(nn.Conv2d(channels, 5, 3, stride=2), _Counting(), nn.Flatten(), nn.Linear(45, classes))

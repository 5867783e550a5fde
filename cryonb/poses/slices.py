"""Central slices of a molecule's transform on rings, read from the slices through one axis.

Each ring of a slice is a great circle on the sphere of its radius, and all rings of a slice lie
along the same great circle of directions. So the transform is read from its Cartesian grid only
where slices through the z axis need it, and along any other circle from those, all rings at once:
interpolation on a sphere, in spherical angles, with the kernel of `cryonb.physics.projection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cryonb.physics.projection import FINER, WIDTH, Transform, envelope, kernel
from cryonb.poses.steerable import PolarGrid, circle

SPARE = 9  # angles beyond the orders that are kept, against aliasing
PIECE = 4  # slices through the axis at a time


@dataclass(frozen=True)
class Slices:
    """Slices of c volumes: `Slices.of`, `at`.

    Attributes
    ----------
    rows : Tensor (phis * thetas, 2 * c * rings)
        Real and imaginary parts at spherical angles from 0 to 180 degrees, and one step beyond.
    angles : int
        Samples on half a circle, and slices through the axis.
    """

    rows: torch.Tensor
    channels: int
    angles: int

    @classmethod
    def of(cls, maps_ft: Transform, grid: PolarGrid) -> Slices:
        """Slices on the rings of a grid, for its orders."""
        n = grid.orders + SPARE
        theta, device = circle(n), maps_ft.rows.device
        u = torch.cat([theta[:, 1:] * theta[:, None], theta[:, :1].expand(n, n, 1)], dim=-1)
        points = (grid.radii[:, None] * u[:, :, None]).to(device)  # (phi, theta, rings, 3)
        read = torch.cat([maps_ft.at(piece) for piece in points.split(PIECE)], dim=1)
        read = (read * grid.scale.to(device)).movedim(0, 2)  # (phi, theta, c, rings)
        behind = torch.cat([read[:, :1], read[:, 1:].flip(1).conj()], dim=1)  # phi + 180 degrees
        read = torch.view_as_real(torch.cat([read, behind])).movedim(-1, 2).flatten(3)
        same, negative = (_finer(n, parity).to(device) for parity in (0, 1))
        fine = torch.cat([same + negative, same - negative], dim=1) / 2
        read = (fine @ read.flatten(1)).unflatten(1, read.shape[1:])  # (phis, theta, 2, c * rings)
        read = torch.stack([same @ read[:, :, 0], negative @ read[:, :, 1]], dim=2)
        return cls(read.flatten(2).flatten(0, 1), maps_ft.channels, n)

    def at(self, planes: torch.Tensor) -> torch.Tensor:
        """Samples (c, m, angles, 2, rings) of slices along planes (m, 3, 2), their x and y axes."""
        u = circle(self.angles).to(planes) @ planes.mT  # (m, angles, 3)
        other = u[..., 1] < 0  # x(-k) = x(k)*
        u = torch.where(other[..., None], -u, u)
        x, y, z = u.unbind(-1)
        at = torch.stack([torch.atan2(y, x), torch.atan2(torch.hypot(x, y), z)])
        at = at * (FINER * self.angles / math.pi)
        lowest = torch.ceil(at - WIDTH / 2)
        taps = torch.arange(WIDTH, device=at.device)
        phi, theta = kernel((lowest - at)[..., None] + taps, WIDTH)
        weights = (phi[..., None] * theta[..., None, :]).flatten(-2)
        across = FINER * self.angles + 2 * (WIDTH // 2) + 1
        phi, theta = (lowest.long() + WIDTH // 2)[..., None] + taps
        index = (phi[..., None] * across + theta[..., None, :]).flatten(-2)
        found = F.embedding_bag(
            index.flatten(0, 1), self.rows, mode="sum", per_sample_weights=weights.flatten(0, 1)
        )
        found = found.view(*other.shape, 2, self.channels, -1)
        found[:, :, 1] *= torch.where(other, -1.0, 1.0)[..., None, None]
        return found.movedim(3, 0)


def _finer(n: int, parity: int) -> torch.Tensor:
    """Matrix from n values on half a circle to the finer grid that the kernel reads.

    The values on the other half are the same (parity 0) or their negatives (1).
    """
    h = torch.arange(1 - n, n)
    h = h[h % 2 == parity].double()
    fine = torch.arange(-(WIDTH // 2), FINER * n + WIDTH // 2 + 1) / FINER
    apart = (fine[:, None] - torch.arange(n)).double() * torch.pi / n
    waves = torch.cos(h * apart[..., None]) / envelope(2 * n, WIDTH)[(h + n).long()]
    return (waves.sum(-1) / n).float()

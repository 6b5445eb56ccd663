from __future__ import annotations

import torch

from fgclip_doctor.core.text import stretched_positions


def test_77_positions_become_248() -> None:
    table = torch.arange(77, dtype=torch.float64)[:, None] ** 2  # a row is the square of its number
    longer = stretched_positions(table)
    assert longer.shape == (248, 1)
    assert torch.equal(longer[:20], table[:20])
    for row in range(20, 76):  # each old row, then three quarters, a half and a quarter of the way to the next one
        steps = [row**2 + quarter / 4 * ((row + 1) ** 2 - row**2) for quarter in range(4)]
        start = 20 + 4 * (row - 20)
        assert longer[start : start + 4, 0].tolist() == steps
    last, slope = 76**2, 76**2 - 75**2
    assert longer[-4:, 0].tolist() == [last + quarter / 4 * slope for quarter in range(4)]

"""Every test of this folder runs on a CPU, and as `gpu` on a card: what the device decides is in the test itself."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """cpu, or cuda where the mark `gpu` is asked for."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    return request.param

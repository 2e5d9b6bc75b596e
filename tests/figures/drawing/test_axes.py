import numpy as np
import pytest

from skip_conditioning.figures.drawing.axes import StepAxis


@pytest.mark.parametrize(
    ("steps", "edges"), [([5], [4.5, 5.5]), ([0, 2, 4], [-1, 1, 3, 5]), ([0, 1, 4], [-0.5, 0.5, 2.5, 4.5])]
)
def test_cell_edges_lie_halfway(steps: list[int], edges: list[float]) -> None:
    np.testing.assert_allclose(StepAxis(np.array(steps)).edges, edges)

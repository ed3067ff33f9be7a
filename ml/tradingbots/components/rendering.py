"""The picture of one episode: price, equity and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ml.tradingbots.data.bars import Bars

FloatArray = npt.NDArray[np.float64]


def episode_figure(bars: Bars, equity: FloatArray, weight: FloatArray) -> Any:
    """Draw an episode so far.

    Args:
        bars: the bars walked, the first one included; n_steps + 1 of them.
        equity: equity at each close, in currency; (n_steps + 1,).
        weight: weights held at each close; (n_steps + 1, n_assets).

    Returns:
        A `plotly.graph_objects.Figure` of three stacked panels.
    """
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    figure: Figure = make_subplots(
        rows=3, shared_xaxes=True, vertical_spacing=0.05, subplot_titles=("price, start = 1", "equity", "weight")
    )
    relative = bars.close / bars.close[0]
    for column, asset in enumerate(bars.assets):
        figure.add_trace(Scatter(x=bars.timestamps, y=relative[:, column], name=asset, legendgroup=asset), 1, 1)
        held = Scatter(x=bars.timestamps, y=weight[:, column], name=asset, legendgroup=asset, showlegend=False)
        figure.add_trace(held.update(line_shape="hv"), 3, 1)
    figure.add_trace(Scatter(x=bars.timestamps, y=equity, name="equity", line_color="#0b6e4f"), 2, 1)
    figure.update_layout(template="plotly_white", height=640, margin={"l": 60, "r": 20, "t": 40, "b": 40})
    return figure

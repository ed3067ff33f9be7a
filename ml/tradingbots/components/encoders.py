"""Encoders: what an agent makes of a window of market rows before its own layers.

An observation of a market is `window_size` rows of market features, oldest first, flattened, and the account features after
them. An encoder reads the rows in time order, turns them into `hidden_dim` numbers and hands the account features on
untouched. All of them see rows of the past only, draw nothing when they act, and behave alike in training and evaluation.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from ml.tradingbots.components.serialization import shown

NetworkName = Literal["mlp", "cnn", "lstm", "transformer"]

# What a row becomes on the way, whatever hidden_dim is: rows of market features are small, and cost grows with the square.
WIDTH = 64
KERNEL = 3
N_CONVOLUTIONS = 2
N_BLOCKS = 2
N_HEADS = 4
# Far beyond what learns from prices: a digit too many must be a message, not a machine without memory.
MAX_WINDOW_SIZE = 10_000
_RELU_GAIN = math.sqrt(2.0)
Layer = TypeVar("Layer", nn.Linear, nn.Conv1d)

_TO_MEND = "use network='mlp', or train in a TradingEnvironment, which describes its window"


@dataclass(frozen=True)
class WindowShape:
    """How an observation divides into rows of market features and account features.

    Raises:
        ValueError: a size is no integer, or out of bounds.
    """

    window_size: int
    """Rows, oldest first; from 1 to 10,000."""
    row_dim: int
    """Market features per row, all assets together; at least 1."""
    account_dim: int
    """Account features after the rows; may be 0."""

    def __post_init__(self) -> None:
        for name, least in (("window_size", 1), ("row_dim", 1), ("account_dim", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {shown(value)}")
        if self.window_size > MAX_WINDOW_SIZE:
            raise ValueError(
                f"window_size must be at most {MAX_WINDOW_SIZE} to be read in order, got {shown(self.window_size)}"
            )

    @property
    def state_dim(self) -> int:
        """Length of the flattened observation."""
        return self.window_size * self.row_dim + self.account_dim


def window_shape(specification: Mapping[str, Any], state_dim: int) -> WindowShape:
    """Read how an observation divides from what a market environment says about itself.

    Args:
        specification: what `specification()` of a market environment returned; it may come from a file, so nothing in it
            is believed before it is checked.
        state_dim: length of the flattened observation.

    Raises:
        ValueError: the environment has no window, or what it says does not add up to `state_dim`.
    """
    config = specification.get("config") if isinstance(specification, Mapping) else None
    if not isinstance(config, Mapping):
        raise ValueError(f"the environment does not say how its observation divides into rows of a window; {_TO_MEND}")
    window_size = _integer(config, "window_size", 1, MAX_WINDOW_SIZE)
    delay = _integer(config, "execution_delay", 0, state_dim)  # Each bar of it is a number of the observation.
    n_assets = _count(specification, "assets")
    n_features = _count(specification, "features")
    # As `Market.account_dim`: weights, unrealised returns, orders under way, drawdown.
    shape = WindowShape(window_size, n_assets * n_features, n_assets * (2 + delay) + 1)
    if shape.state_dim != state_dim:
        raise ValueError(
            f"the environment's specification does not add up: {window_size} rows of {shape.row_dim} market features and "
            f"{shape.account_dim} account features are {shape.state_dim} numbers, the observation has {shown(state_dim)}; "
            f"{_TO_MEND}"
        )
    return shape


def _integer(config: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = config.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f"{name} of the environment's specification must be an integer from {least} to {shown(most)}, "
            f"got {shown(value)}; {_TO_MEND}"
        )
    return value


def _count(specification: Mapping[str, Any], name: str) -> int:
    names = specification.get(name)
    if not isinstance(names, (list, tuple)) or not names or not all(type(item) is str for item in names):
        raise ValueError(
            f"{name} of the environment's specification must be a list of names, got {shown(names)}; {_TO_MEND}"
        )
    return len(names)


class Encoder(nn.Module):
    """What an observation becomes before an agent's own layers.

    Attributes:
        output_dim: length of what comes out.
    """

    def __init__(self, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim

    def forward(self, observation: Tensor) -> Tensor:
        """Encode observations (batch, state_dim) as (batch, output_dim)."""
        raise NotImplementedError


class FlatEncoder(Encoder):
    """The observation as it is: the agent's own layers see every number of the window on its own."""

    def forward(self, observation: Tensor) -> Tensor:
        """Return the observations given; (batch, state_dim)."""
        return observation


class WindowEncoder(Encoder):
    """Rows through a network that knows their order, then the account features as they came.

    Args:
        window: how an observation divides.
        hidden_dim: length of the encoded window.
        body: maps rows (batch, window_size, row_dim) to (batch, body.output_dim).
    """

    def __init__(self, window: WindowShape, hidden_dim: int, body: Convolutions | Recurrence | Attention) -> None:
        super().__init__(hidden_dim + window.account_dim)
        self.rows = (window.window_size, window.row_dim)
        self.window_dim = window.window_size * window.row_dim
        self.body = body
        self.head = _orthogonal(nn.Linear(body.output_dim, hidden_dim), _RELU_GAIN)

    def forward(self, observation: Tensor) -> Tensor:
        """Encode observations; (batch, hidden_dim + account_dim)."""
        rows = observation[:, : self.window_dim].reshape(-1, *self.rows)  # (batch, window_size, row_dim)
        encoded = torch.relu(self.head(self.body(rows)))  # (batch, hidden_dim)
        return torch.cat([encoded, observation[:, self.window_dim :]], 1)


class Convolutions(nn.Module):
    """Two convolutions over time that each halve it. Nothing is pooled: what comes out still says when it happened."""

    def __init__(self, window: WindowShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.padding: list[int] = []
        length, width = window.window_size, window.row_dim
        for _ in range(N_CONVOLUTIONS):
            self.layers.append(_orthogonal(nn.Conv1d(width, WIDTH, KERNEL, stride=2), _RELU_GAIN))
            # Before the first row only, and so much that the last window ends at the last row, which matters most.
            self.padding.append(1 + length % 2)
            length, width = (length + 1) // 2, WIDTH
        self.output_dim = length * width

    def forward(self, rows: Tensor) -> Tensor:
        """Encode rows (batch, window_size, row_dim) as (batch, output_dim)."""
        x = rows.transpose(1, 2)  # (batch, row_dim, window_size)
        for layer, before in zip(self.layers, self.padding, strict=True):
            x = torch.relu(layer(pad(x, (before, 0))))
        return x.flatten(1)


class Recurrence(nn.Module):
    """An LSTM over the rows (Hochreiter & Schmidhuber, 1997); its last hidden state."""

    output_dim = WIDTH

    def __init__(self, window: WindowShape) -> None:
        super().__init__()
        self.lstm = nn.LSTM(window.row_dim, WIDTH, batch_first=True)
        weight_in, weight_back, bias_in, bias_back = (parameter.detach() for parameter in self.lstm.parameters())
        for gate in (*weight_in.chunk(4), *weight_back.chunk(4)):
            _draw_orthogonal(gate)
        nn.init.zeros_(bias_back)
        # Memories of all lengths up to the window (Tallec & Ollivier, 2018); the gates are input, forget, cell, output.
        keep = torch.empty(WIDTH).uniform_(1.0, max(1.0, window.window_size - 1.0)).log()
        bias_in.copy_(torch.cat([-keep, keep, torch.zeros(2 * WIDTH)]))

    def forward(self, rows: Tensor) -> Tensor:
        """Encode rows (batch, window_size, row_dim) as (batch, output_dim)."""
        states: Tensor = self.lstm(rows)[0]  # (batch, window_size, output_dim)
        return states[:, -1]


class Attention(nn.Module):
    """A pre-norm transformer over the rows (Vaswani et al., 2017; Xiong et al., 2020); what its last row became.

    Written out instead of `nn.TransformerEncoder`, which takes another path, with other numbers, where no gradient is asked
    for. Without dropout: an agent's actions must not depend on a mode.
    """

    output_dim = WIDTH

    def __init__(self, window: WindowShape) -> None:
        super().__init__()
        self.embedding = _orthogonal(nn.Linear(window.row_dim, WIDTH), 1.0)
        # On the scale of an embedded row: quieter positions took several times longer to learn anything from.
        self.positions = nn.Parameter(torch.randn(window.window_size, WIDTH))
        self.blocks = nn.ModuleList(AttentionBlock() for _ in range(N_BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, rows: Tensor) -> Tensor:
        """Encode rows (batch, window_size, row_dim) as (batch, output_dim)."""
        x = self.embedding(rows) + self.positions  # (batch, window_size, WIDTH)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            # Only the last row is read in the end, so the last block need not compute the others.
            x = block(x, x[:, -1:] if number == last else x)
        encoded: Tensor = self.norm(x.squeeze(1))
        return encoded


class AttentionBlock(nn.Module):
    """Self-attention and a small network, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        # Each block adds twice to the stream; shrunk so that its scale does not grow with depth (Radford et al., 2019).
        gain = 1.0 / math.sqrt(2.0 * N_BLOCKS)
        self.attention_norm, self.network_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query = _orthogonal(nn.Linear(WIDTH, WIDTH), 1.0)
        self.key_value = _orthogonal(nn.Linear(WIDTH, 2 * WIDTH), 1.0)
        self.mix = _orthogonal(nn.Linear(WIDTH, WIDTH), gain)
        self.widen = _orthogonal(nn.Linear(WIDTH, 2 * WIDTH), _RELU_GAIN)
        self.narrow = _orthogonal(nn.Linear(2 * WIDTH, WIDTH), gain)

    def forward(self, rows: Tensor, asking: Tensor) -> Tensor:
        """Let some of the rows look at all of them.

        Args:
            rows: what is looked at; (batch, window_size, WIDTH).
            asking: those of the rows that look and are returned; (batch, n_asking, WIDTH).

        Returns:
            The asking rows with what they found; (batch, n_asking, WIDTH).
        """
        query = _heads(self.query(self.attention_norm(asking)))
        key, value = self.key_value(self.attention_norm(rows)).chunk(2, -1)
        found = scaled_dot_product_attention(query, _heads(key), _heads(value))
        x: Tensor = asking + self.mix(found.transpose(1, 2).flatten(2))  # (batch, n_asking, WIDTH)
        x = x + self.narrow(torch.relu(self.widen(self.network_norm(x))))
        return x


def _heads(x: Tensor) -> Tensor:
    """Divide rows (batch, n_rows, WIDTH) among heads; (batch, N_HEADS, n_rows, WIDTH / N_HEADS)."""
    return x.reshape(*x.shape[:2], N_HEADS, -1).transpose(1, 2)


def make_encoder(network: NetworkName, state_dim: int, window: WindowShape | None, hidden_dim: int) -> Encoder:
    """Return what stands between an observation and an agent's own layers.

    Args:
        network: "mlp" passes the observation through and costs nothing; "cnn" convolves over time; "lstm" reads row by
            row; "transformer" lets rows look at each other.
        state_dim: length of the flattened observation.
        window: how the observation divides, see `window_shape`; "mlp" needs none.
        hidden_dim: length of the encoded window.

    Returns:
        A module from (batch, state_dim) to (batch, output_dim); `output_dim` is state_dim for "mlp" and
        hidden_dim + account_dim for the others.

    Raises:
        ValueError: the name is unknown, there is no window, or it is not that of such an observation.
    """
    if network not in get_args(NetworkName):
        close = difflib.get_close_matches(str(network).lower(), get_args(NetworkName), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown network {shown(network)}.{hint} Available: {', '.join(get_args(NetworkName))}")
    if hidden_dim < 1:
        raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim}")
    if network == "mlp":
        return FlatEncoder(state_dim)
    if window is None:
        raise ValueError(f"network={network!r} must know how an observation divides into rows; {_TO_MEND}")
    if window.state_dim != state_dim:
        raise ValueError(f"{window} describes {window.state_dim} numbers, the observation has {state_dim}; {_TO_MEND}")
    bodies: dict[str, type[Convolutions | Recurrence | Attention]]
    bodies = {"cnn": Convolutions, "lstm": Recurrence, "transformer": Attention}
    return WindowEncoder(window, hidden_dim, bodies[network](window))


def least_parameters(network: NetworkName, window: WindowShape, hidden_dim: int) -> int:
    """Count the weights that an encoder has at least, without making it."""
    length = window.window_size
    for _ in range(N_CONVOLUTIONS):
        length = (length + 1) // 2
    tokens = length if network == "cnn" else 1
    return WIDTH * (window.row_dim + tokens * hidden_dim)


def _orthogonal(layer: Layer, gain: float) -> Layer:
    """Draw a layer's weights orthogonal and set its biases to 0 (Saxe et al., 2014)."""
    _draw_orthogonal(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _draw_orthogonal(weight: Tensor, gain: float = 1.0) -> None:
    """Draw weights that give inputs of size 1 outputs of size `gain`, number by number.

    Orthogonal weights keep the length of a vector; a layer that widens would share it out among more numbers.
    """
    n_outputs, n_inputs = weight.shape[0], weight[0].numel()
    nn.init.orthogonal_(weight, gain * math.sqrt(max(1.0, n_outputs / n_inputs)))

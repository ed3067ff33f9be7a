"""What an ensemble's file holds beside numbers: its members, each as the bytes of its own file, and its splitter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from pandas.tseries.frequencies import to_offset

from ml.tradingbots.components.ensemble_members import PricePredictor
from ml.tradingbots.components.return_predictor import ReturnPredictor
from ml.tradingbots.components.serialization import CheckpointError, shown
from ml.tradingbots.data.splitters import BarSplitter, PurgedKFold, WalkForwardValidator

SPLITTERS: dict[str, type[BarSplitter]] = {kind.__name__: kind for kind in (PurgedKFold, WalkForwardValidator)}
"""Those that test each bar once, by name."""


def member_as_tensor(member: PricePredictor) -> torch.Tensor:
    """Return the bytes of a member's own file; uint8."""
    with tempfile.TemporaryDirectory() as folder:
        content = member.save(Path(folder) / "member.pt").read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def member_from_tensor(made: type[Any], content: Any, device: str | None = None) -> PricePredictor:
    """Return the predictor of a class whose file these bytes are, its networks on a device; None: as `load` chooses.

    Raises:
        ValueError: they are none, or those of another predictor.
    """
    if type(content) is not torch.Tensor or content.dtype != torch.uint8 or content.ndim != 1:
        raise ValueError("a predictor must be the bytes of its file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "member.pt"
        path.write_bytes(content.numpy().tobytes())
        try:
            # A class of a user's own may know nothing of devices.
            on_device = {"device": device} if issubclass(made, ReturnPredictor) else {}
            member: PricePredictor = made().load(path, **on_device)
        except CheckpointError as error:
            raise ValueError(f"a member's file: {str(error).replace(str(path), 'it')}") from error
    return member


def splitter_as_content(splitter: BarSplitter | None) -> dict[str, Any] | None:
    """Return a splitter's class and arguments as plain values; offsets become their names."""
    if splitter is None:
        return None
    arguments = {name: value for name, value in vars(splitter).items() if not name.startswith("_")}
    sizes = {
        name: value if value is None or isinstance(value, (int, str)) else to_offset(value).freqstr
        for name, value in arguments.items()
    }
    return {"type": type(splitter).__name__, **sizes}


def splitter_from_content(content: Any) -> BarSplitter | None:
    """Return the splitter that was saved.

    Raises:
        ValueError: it is of no class in `SPLITTERS`, or its arguments are refused.
    """
    if content is None:
        return None
    arguments = dict(content)
    kind = arguments.pop("type")
    if kind not in SPLITTERS:
        raise ValueError(f"splitter is a {shown(kind)}; known are {', '.join(SPLITTERS)}")
    return SPLITTERS[kind](**arguments)

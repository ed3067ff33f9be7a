"""Writing what an agent learned as an ONNX file, which other programs can run without Python or torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.serialization import write_atomically

# The oldest that torch's exporter writes: old runtimes read it, new ones too.
OPSET = 18


class DeterministicPolicy(nn.Module):
    """From raw observations to the environment's actions: normaliser, best action, scaling.

    It is that of a copy of the agent, on the CPU: tracing leaves traces in the modules it walks through.
    """

    def __init__(self, agent: BaseAgent) -> None:
        super().__init__()
        self.agent = type(agent)(agent.state_dim, agent.action_dim, agent.config, seed=agent.seed)
        self.agent.load_state_dict(agent.state_dict())
        for name, value in vars(self.agent).items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
        self.requires_grad_(False).eval()

    def forward(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return what `agent.select_action(observation, deterministic=True, action_mask=action_mask)` does.

        Args:
            observation: raw; (batch, state_dim).
            action_mask: bool (batch, action_dim), or (1, action_dim) for the same one everywhere.

        Returns:
            Actions; (batch, action_dim), and for discrete agents int64 (batch,) or (batch, n_branches).
        """
        if action_mask is not None:
            action_mask = action_mask.expand(observation.shape[0], self.agent.action_dim)
        seen = self.agent.normalizer(observation)
        return self.agent.to_environment(self.agent.deterministic_policy(seen, action_mask))


def export_onnx(agent: BaseAgent, path: str | Path) -> Path:
    """Write an agent's deterministic policy, normaliser and action scaling included, as one ONNX file.

    The file takes `observation`, float32 (batch, state_dim), raw as the environment gives it, and answers `action`: what
    `agent.select_action(observation, deterministic=True)` answers, to rounding. A discrete agent's file also takes
    `action_mask`, bool (batch, action_dim); where it is left out all choices are legal. Nothing is checked when it runs:
    NaN in, nonsense out.

    The file's metadata hold `agent_type`, `environment` (the specification of the training environment as JSON) and, for
    continuous agents, `action_bounds` (JSON: `low` and `high`, (action_dim,) each).

    Args:
        agent: any agent that has its networks.
        path: where; written atomically, parent folders are made.

    Returns:
        The path written.

    Raises:
        ImportError: the packages that write ONNX are not installed.
        RuntimeError: the agent has no networks yet.
        ValueError: its networks have diverged.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter imports it late, and says less when it is missing.
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs the package {error.name}. Install it: pip install 'tradingbots[onnx]'"
        ) from error
    agent.select_action(np.zeros(agent.state_dim, dtype=np.float32), deterministic=True)  # Refuses what cannot act.
    model = _traced(agent)
    if agent.is_discrete:
        # An input with a value in the file may be left out.
        mask = model.graph.input[1].type.tensor_type.shape.dim[0]
        mask.Clear()
        mask.dim_param = "mask_batch"
        allowed = np.ones((1, agent.action_dim), dtype=np.bool_)
        model.graph.initializer.append(onnx.numpy_helper.from_array(allowed, "action_mask"))
    for key, value in _metadata(agent).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return write_atomically(path, model.SerializeToString())


def _traced(agent: BaseAgent) -> Any:
    """Return the policy as an ONNX model."""
    # Of two: torch takes a batch of one for a constant.
    example = {"observation": torch.zeros((2, agent.state_dim))}
    shapes: dict[str, Any] = {"observation": {0: torch.export.Dim("batch")}}
    if agent.is_discrete:
        example["action_mask"] = torch.ones((1, agent.action_dim), dtype=torch.bool)
        shapes["action_mask"] = {}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            DeterministicPolicy(agent),
            kwargs=example,
            input_names=list(example),
            output_names=["action"],
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Where in the source everything came from and what lies between: larger than a small network, and nobody's business.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise RuntimeError("torch fixed the batch of the exported policy; please report this with the agent's config")
    for part in (model.graph, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    return model


def _metadata(agent: BaseAgent) -> dict[str, str]:
    metadata = {"agent_type": agent.agent_type, "environment": json.dumps(agent.environment_spec)}
    if not agent.is_discrete:
        bounds = {"low": agent.action_low.tolist(), "high": agent.action_high.tolist()}
        metadata["action_bounds"] = json.dumps(bounds)
    return metadata


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep to itself what torch's exporter says about its own insides and about packages nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

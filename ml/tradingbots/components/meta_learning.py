"""Agents that carry what they learned from one market, task or regime to another."""

from ml.tradingbots.components.multitask_agent import MultiTaskConfig, MultiTaskRLAgent
from ml.tradingbots.components.task_policy import TaskPolicy

__all__ = ["MultiTaskConfig", "MultiTaskRLAgent", "TaskPolicy"]

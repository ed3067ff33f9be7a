"""What every benchmark writes down: where, when and with what something was measured, and every single run.

A file of `results/` holds rows as they come, so that a run that was interrupted can be continued. Each row names the
conditions it was made under; a row counts as done only where today's conditions are the very same.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")
# What a trained agent depends on; reports and figures do not change a result.
CODE = (
    "core",
    "data",
    "components",
    "training/rl_training.py",
    "training/evaluation.py",
    "training/regret.py",
)


def conditions(settings: Any = None, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return the machine, the versions and the settings of a measurement; call it with the threads already set."""
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "code": code_digest(),
        "torch_threads": torch.get_num_threads(),
        "settings": as_json(settings),
    }


def digest(value: Any) -> str:
    """Return a short name for JSON content.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(as_json(value), sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_digest() -> str:
    """Return a short name for the code that learns; formatting, comments and docstrings do not change it."""
    found = hashlib.sha256()
    for entry in CODE:
        path = ROOT / "ml" / "tradingbots" / entry
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(ast.dump(_without_docstrings(ast.parse(file.read_text(encoding="utf-8")))).encode())
    return found.hexdigest()[:12]


def as_json(value: Any) -> Any:
    """Return dataclasses and mappings as JSON has them; a schedule is written as where it starts and ends."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(name): as_json(entry) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(entry) for entry in value]
    if isinstance(value, type):
        return value.__name__
    return {"from": value(1.0), "to": value(0.0)} if isinstance(value, FunctionType) else value


class Records:
    """Rows of one file of `results/`, each under a key of its own; what is not measured again stays as it was.

    Args:
        name: of the file, without its ending.
        save: whether rows are written as they come.
        resume: whether rows of the file that were made under the same conditions count as done.
    """

    def __init__(self, name: str, *, save: bool, resume: bool = False) -> None:
        self.path = RESULTS / f"{name}.json"
        self.save, self.resume = save or resume, resume
        content = json.loads(self.path.read_text()) if self.save and self.path.exists() else {}
        self.conditions: dict[str, Any] = content.get("conditions", {})
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in content.get("rows", ()) if "key" in row}

    def done(self, key: str, under: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the row of a key if a resumed run need not make it again."""
        row = self.rows.get(key)
        return row if self.resume and row is not None and row["conditions"] == digest(under) else None

    def add(self, key: str, under: Mapping[str, Any], row: Any) -> dict[str, Any]:
        """Keep a row in place of an older one of the same key; returns it as it is written."""
        name = digest(under)
        self.conditions[name] = dict(under)
        today = datetime.now(UTC).date().isoformat()
        self.rows[key] = {"key": key, "conditions": name, "date": today, **as_json(row)}
        self.write()
        return self.rows[key]

    def write(self, summary: Any = None) -> None:
        """Write the file, if results are saved; whoever interrupts finds the old file or the new one, never half of it."""
        if not self.save:
            return
        used = {row["conditions"] for row in self.rows.values()}
        kept = {name: entry for name, entry in self.conditions.items() if name in used}
        content = {"conditions": kept, "summary": as_json(summary), "rows": list(self.rows.values())}
        self.path.parent.mkdir(exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self.path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                entry for entry in body if not (isinstance(entry, ast.Expr) and isinstance(entry.value, ast.Constant))
            ]
    return tree

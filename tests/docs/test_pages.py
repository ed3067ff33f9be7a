"""The pages are finished."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from ml.tradingbots.components.agent_config import OnPolicyConfig
from ml.tradingbots.components.rl_agents import AGENTS

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "ml" / "README.md", ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_no_placeholder_left(page):
    assert not re.findall(r"^[A-Z]+_[A-Z_]+$|TODO|FIXME", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_a_page_names_exist(page):
    named = re.findall(r"`((?:ml|tests|docs|benchmarks|tradingbots|requirements)/[\w/.-]+\.\w+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


OPTION = re.compile(r"^\| `(\w+)` \| `([^`]+)` \|", re.MULTILINE)
ALGORITHMS = ROOT / "docs" / "algorithms"


def documented_defaults(text):
    return {name: ast.literal_eval(default) for name, default in OPTION.findall(text)}


@pytest.mark.parametrize("name", AGENTS)
def test_every_option_of_an_agent_is_documented_with_its_default(name):
    everybody, replay, rollouts = re.split(r"^### ", (ALGORITHMS / "README.md").read_text(), flags=re.MULTILINE)
    config = AGENTS[name].config_class()
    kind = rollouts if isinstance(config, OnPolicyConfig) else replay
    page = (ALGORITHMS / f"{name}.md").read_text()
    documented = documented_defaults(everybody) | documented_defaults(kind) | documented_defaults(page)
    assert documented == dataclasses.asdict(config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_pages_a_page_links_to_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []

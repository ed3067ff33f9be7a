"""The numbers on the algorithm pages are those that were measured and kept."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_pages_are_what_the_results_are():
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_page_of_twenty_stocks_is_what_was_kept():
    done = subprocess.run(
        [sys.executable, "benchmarks/stocks_page.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_page_of_portfolio_agents_is_what_was_kept():
    done = subprocess.run(
        [sys.executable, "benchmarks/portfolio_agents_page.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

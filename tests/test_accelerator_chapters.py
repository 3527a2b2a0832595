"""Every chapter that looks at `device` runs on one, shown in smoke on the pretend accelerator."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from machinery import chapters

TESTS = Path(__file__).parent
QUICK = ("05_pde_perspective", "11_function_space")  # the others take minutes: `make accelerator`


def looks_at_device(page):
    """Whether its code chooses a device, or passes it on."""
    return re.search(r'device == "auto"|\brun, device\b', page.text.read_text("utf-8"))


PAGES = [page for page in chapters.with_evidence(chapters.all_chapters()) if looks_at_device(page)]


def test_the_chapters_are_found():
    found = {int(page.stem[:2]) for page in PAGES}
    assert found == {1, 2, 5, 6, 7, *range(10, 16)}
    assert set(QUICK) <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_chapter_runs_in_smoke_on_a_device(page, tmp_path):
    if page.name not in QUICK and "ACCELERATOR" not in os.environ:
        pytest.skip("make accelerator runs it")
    shutil.copytree(chapters.BOOK / "results", tmp_path / "results")
    path = os.pathsep.join([str(chapters.ROOT), str(chapters.BOOK), str(TESTS)])
    run = subprocess.run(
        [sys.executable, TESTS / "on_accelerator.py", page.name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]

"""launch/Dockerfile, by hadolint: Docker itself is not needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

HADOLINT = Path(sys.executable).parent / "hadolint"

TEXT = (ROOT / "launch/Dockerfile").read_text()

INSTRUCTIONS = re.findall(r"^([A-Z]+) (.+?)$", TEXT.replace("\\\n", " "), re.MULTILINE)
"""(word, the rest), in order."""


def findings(text: str) -> list[str]:
    """The rules of hadolint that a Dockerfile breaks."""
    done = subprocess.run(
        [HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == "" and bool(done.stdout) == bool(done.returncode), done
    return re.findall(r"\b(?:DL|SC)\d{4}\b", done.stdout)


def test_the_linter_finds_nothing() -> None:
    assert findings(TEXT) == []


@pytest.mark.parametrize(
    ("line", "worse", "rule"),
    [
        ("FROM nvidia/cuda:13.2.0-base-ubuntu24.04", "FROM nvidia/cuda", "DL3006"),
        ("USER 10001", "USER root", "DL3002"),
        ('ENTRYPOINT ["ddad"]', "ENTRYPOINT ddad", "DL3025"),
        ("pip install --no-cache-dir", "pip install", "DL3042"),
    ],
)
def test_the_linter_would_find_what_matters(line: str, worse: str, rule: str) -> None:
    assert line in TEXT and rule in findings(TEXT.replace(line, worse))


def test_the_command_is_the_entry_and_its_user_is_not_root() -> None:
    last = dict(INSTRUCTIONS)
    assert (last["ENTRYPOINT"], last["USER"], last["FROM"].count(":")) == ('["ddad"]', "10001", 1)
    assert not any(re.search("(?i)token|secret|password|api_?key", rest) for _, rest in INSTRUCTIONS)


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = {path for word, rest in INSTRUCTIONS if word == "COPY" for path in rest.split()[:-1]}
    allowed = re.findall(r"^!(.+)$", (ROOT / "launch/Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert copied == set(allowed) and all((ROOT / path).exists() for path in copied)


def test_the_base_has_the_cuda_of_the_pinned_wheels() -> None:
    (pinned,) = re.findall(r"^cuda-toolkit==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"nvidia/cuda:{pinned}." in TEXT

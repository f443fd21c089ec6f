"""What README.md and docs/ name is there: files, tests, and commands with options that `qsm` still takes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsm.command import cli, train
from qsm.options.parser import Parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = {"TASK": "cheetah-run", "N": "3", "T": "5", "$SLURM_ARRAY_TASK_ID": "0"}
NAMED = re.compile(r"[\w./-]*\b(?:test_\w+|(?:agents|envs|qsm|scripts|tests)/[\w/]+)\.py\b")
NAMES = "|".join(cli.COMMANDS)
LINE = re.compile(rf"^ *(?:\S+ )?(?:\S*/)?qsm ((?:{NAMES})\b.*)$", re.MULTILINE)
INLINE = re.compile(rf"`qsm ((?:{NAMES}) [^-`\n][^`\n]*)`")


def commands(page: Path) -> Iterator[str]:
    """Every whole command of a page, on a line of its own or within a sentence.

    Forms with |, < or a lone ... stand for several commands, and are left out.
    """
    text = page.read_text()
    for line in (*LINE.findall(text), *INLINE.findall(text)):
        command = re.split(r"\s+#|\s\|\||\s{3,}", line)[0]
        if not set("|<") & set(command) and "..." not in command.split():
            yield command


FOUND = [(page.relative_to(ROOT), line) for page in PAGES for line in dict.fromkeys(commands(page))]


class Parsed(Exception):
    """The words of a command were taken."""


def test_there_are_commands_on_the_pages():
    assert len(FOUND) > 60 and {line.split()[0] for _, line in FOUND} >= {"train", "eval", "bench", "report"}


@pytest.mark.parametrize(("page", "line"), FOUND, ids=lambda value: str(value)[:60])
def test_commands_on_the_pages_are_taken(
    page: Path, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of `train` and `bench` with names of agents, tasks and suites, too."""
    monkeypatch.chdir(tmp_path)  # away from runs that somebody has in the checkout
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    # It takes JAX and the simulator, for each page and line.
    monkeypatch.setattr(train, "predicted_memory", lambda *_: ["not predicted here"])
    if words[0] in ("train", "bench") and not {"--help", "ray"} & set(words):
        words.append("--dry-run")
    else:
        parse = Parser.parse

        def parse_only(self: Parser, arguments: list[str]) -> None:
            parse(self, arguments)
            raise Parsed

        monkeypatch.setattr(Parser, "parse", parse_only)
    try:
        status = cli.main(words)
    except Parsed:
        status = 0
    except SystemExit as ended:  # of --help
        status = int(ended.code or 0)
    assert status == 0, f"{page}: qsm {line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_links_on_the_pages_exist(page: Path) -> None:
    text = page.read_text()
    names = {path.name for path in ROOT.glob("tests/**/*.py")}
    missing = [
        name
        for name in NAMED.findall(text)
        if not ((ROOT / name).exists() or ("/" not in name and name in names))
    ]
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    missing += [link for link in links if not os.path.exists(page.parent / link)]
    assert missing == []

"""The arguments of a command: words are read into dataclasses, and a mistake is answered in one line.

The line names the option, what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from qsm.base.errors import UserError, nearest
from qsm.options.arguments import negated
from qsm.options.kinds import NUMBER, Kind, flag_of, kind_of

SWITCH_VALUES = ("true", "false", "yes", "no", "on", "off")


class Positional(NamedTuple):
    """An argument without a flag; one without default must be given."""

    name: str
    help: str
    type: Any = str
    default: Any = dataclasses.MISSING
    hint: str = ""  # what to do where it is missing

    @property
    def kind(self) -> Kind:
        """How it is read."""
        kind = kind_of(self.type)
        assert kind is not None, f"arguments of type {self.type} are not supported"
        return kind

    @property
    def shown(self) -> str:
        """How usage lines write it."""
        name = self.name.upper() + ("..." if self.kind.takes_many else "")
        return name if self.default is dataclasses.MISSING else f"[{name}]"


class Parser:
    """The arguments of one command.

    Args:
      program: what is typed before them, such as `qsm train qsm`.
      description: a sentence for the help.
      groups: a dataclass of options for each title of the help; every option has a default.
      positionals: the arguments without flags, in order; the last may take many words.
      subject: whose options they are, for errors: `agent 'qsm'`.
      foreign: flags that this command lacks, and whose they are: `{"--score-scale": "agent 'qsm'"}`.
      implied: options that follow from those given, where they are not given themselves.
    """

    def __init__(
        self,
        program: str,
        description: str,
        groups: Mapping[str, type] | None = None,
        positionals: Sequence[Positional] = (),
        subject: str | None = None,
        foreign: Mapping[str, str] | None = None,
        implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        self.program = program
        self.description = description
        self.groups = groups or {}
        self.positionals = positionals
        self.subject = subject or repr(program)
        self.foreign = foreign or {}
        self.implied = implied
        self.kinds: dict[str, Kind | None] = {}
        for group in self.groups.values():
            hints = get_type_hints(group)
            kinds = {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(group)}
            for name, kind in kinds.items():
                assert name not in self.kinds, f"two groups have an option {name}"
                assert kind is not None or hints[name] is bool, (
                    f"options of type {hints[name]} are not supported"
                )
            self.kinds |= kinds
        self.flags = {flag_of(name): name for name in self.kinds}
        self.flags |= {negated(flag): name for flag, name in self.flags.items() if self.kinds[name] is None}

    @property
    def usage(self) -> str:
        """What is typed, in one line."""
        words = [self.program, *(positional.shown for positional in self.positionals)]
        return " ".join([*words, *(["[options]"] if self.kinds else [])])

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Values of the positionals by name, an instance of each group by its title, and what was named in `named`.

        Raises:
          UserError: a mistake in `arguments`, told in one line.
          SystemExit: status 0, after help was asked for and printed.
        """
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        if {"-h", "--help"} & set(options):
            print(self.help())
            raise SystemExit(0)
        values, words = self._read(arguments)
        named = frozenset(values)  # options of the line itself, and none that is implied
        if self.implied is not None:
            values = {**self.implied(values), **values}
        try:
            instances = {title: self.instance(group, values) for title, group in self.groups.items()}
        except UserError as error:
            flag = str(error).partition(" ")[0]
            if self.flags.get(flag, flag) not in values.keys() - named:
                raise
            raise UserError(f"{error}. It is --preset that sets {flag}: give {flag} too") from error
        return self._read_words(words) | instances | {"named": named}

    def help(self, width: int | None = None) -> str:
        """The help, in so many columns; None: those of the terminal."""
        from qsm.options.help import default_note, render

        rows = []
        for one in self.positionals:
            has_default = one.default is not dataclasses.MISSING
            rows.append(
                (one.shown, f"{one.help} {default_note(one.kind.show(one.default)) if has_default else ''}")
            )
        return render(self.usage, self.description, rows, self.groups, width)

    def instance(self, group: type, values: Mapping[str, Any]) -> Any:
        """`group` with those of `values` that are its options.

        Raises:
          UserError: a value that the group does not allow; its line names flags where the group names fields.
        """
        names = [field.name for field in dataclasses.fields(group)]
        try:
            return group(**{name: values[name] for name in names if name in values})
        except ValueError as error:
            raise UserError(self.with_flags(str(error))) from error

    def with_flags(self, message: str) -> str:
        """`message` with fields written as flags: its first word, and any that cannot be plain English."""

        def replace(match: re.Match[str]) -> str:
            word = match[0]
            known = word in self.kinds and (match.start() == 0 or "_" in word)
            return flag_of(word) if known else word

        return re.sub(r"(?<![\w'-])\w+", replace, message)  # what was given stands in quotes

    def _read(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The values of the options that were given, by field, and the words that are none."""
        values: dict[str, Any] = {}
        words: list[str] = []
        queue = deque(arguments)
        while queue:
            word = queue.popleft()
            if word == "--":
                words += queue
                break
            if not word.startswith("-") or NUMBER.fullmatch(word):
                words.append(word)
                continue
            flag, name = self._find(word)
            kind, equals, text = self.kinds[name], "=" in word, word.partition("=")[2]
            if kind is None:
                self._check_switch(name, equals, queue)
                values[name] = flag == flag_of(name)
            else:
                values[name] = self._read_value(flag, kind, text if equals else None, queue)
        return values, words

    def _find(self, word: str) -> tuple[str, str]:
        """The flag of `--flag` or `--flag=value` and the field it belongs to."""
        given = word.partition("=")[0]
        flag = given.lower().replace("_", "-")
        if flag not in self.flags:
            owner = self.foreign.get(flag)
            hint = f" It is an option of {owner}." if owner else nearest(flag, self.flags)
            raise UserError(
                f"Unknown option '{given}' of {self.subject}.{hint} List options with: {self.program} --help"
            )
        return flag, self.flags[flag]

    def _check_switch(self, name: str, equals: bool, queue: deque[str]) -> None:
        if equals or (queue and queue[0].lower() in SWITCH_VALUES):
            on = flag_of(name)
            raise UserError(f"Option '{on}' is a switch and takes no value. Write {on} or {negated(on)}")

    def _read_value(self, flag: str, kind: Kind, text: str | None, queue: deque[str]) -> Any:
        """The value of `flag`: what stands behind its `=`, or the next of `queue`; more where it takes many."""
        if text is None and queue and not queue[0].startswith("--"):
            text = queue.popleft()
        if not text:
            raise UserError(f"Option '{flag}' needs a value: {kind.allowed}")
        words = [text]
        while kind.takes_many and queue and not queue[0].startswith("-"):
            words.append(queue.popleft())
        try:
            value = kind.read(*words)
        except ValueError as error:
            hint = f".{error}" if kind.metavar.startswith("{") else ""
            raise UserError(f"{flag} is '{' '.join(words)}'; it must be {kind.allowed}{hint}") from None
        if kind.metavar.count("INT") > 1 and queue and re.fullmatch(r"\d+", queue[0]):
            raise UserError(f"Unexpected argument '{queue[0]}'. Write {flag} {text},{queue[0]} with commas")
        return value

    def _read_words(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of the positionals."""
        values: dict[str, Any] = {}
        rest = list(words)
        for positional in self.positionals:
            taken, rest = (rest, []) if positional.kind.takes_many else (rest[:1], rest[1:])
            if not taken and positional.default is dataclasses.MISSING:
                raise UserError(f"{positional.name.upper()} is missing. Usage: {self.usage}{positional.hint}")
            if "" in taken:
                raise UserError(f"{positional.name.upper()} is empty. Usage: {self.usage}{positional.hint}")
            values[positional.name] = positional.kind.read(*taken) if taken else positional.default
        if rest:
            flag = flag_of(rest[0].partition("=")[0])
            meant = f" Did you mean '--{rest[0].replace('_', '-')}'?" if flag in self.flags else ""
            raise UserError(f"Unexpected argument '{rest[0]}'.{meant} Usage: {self.usage}")
        return values

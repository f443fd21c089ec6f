"""Command-line options out of dataclasses.

tyro builds the options and renders their help. Before it sees the arguments, every name and value is held
against the dataclasses here, so that a mistake is answered in one line that names the option, what was given
and what is allowed, where tyro would print a box.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from qsm.base.errors import UserError, nearest

LARGEST = 10**18  # beyond this a whole number of anything here is a slip, and 1e999999999 would take minutes
SEPARATOR = "\n"
"""Between words that one option takes; no name and hardly a path has it."""
NUMBER = re.compile(r"[+-]?(\d+(_\d+)*)?(\.(\d+(_\d+)*)?)?(e[+-]?\d{1,4})?", re.IGNORECASE | re.ASCII)


class Kind(NamedTuple):
    """How values of one type are read from the command line and shown."""

    read: Callable[[str], Any]  # raises ValueError
    allowed: str  # completes "it must be ..."
    metavar: str
    show: Callable[[Any], str] = str


class Positional(NamedTuple):
    """An argument without a flag; one without default must be given."""

    name: str
    help: str
    type: Any = str
    default: Any = dataclasses.MISSING
    hint: str = ""  # what to do where it is missing

    @property
    def shown(self) -> str:
        """How usage lines write it."""
        name = self.name.upper() + ("..." if takes_many(self.type) else "")
        return name if self.default is dataclasses.MISSING else f"[{name}]"


def read_whole_number(text: str) -> int:
    """An int from `5000`, `1_000_000`, `1e6` or `2.5e4`, exactly.

    Raises:
      ValueError: anything else, such as `1.5`, `inf` or a number above 1e18.
    """
    if not NUMBER.fullmatch(text) or not re.search(r"\d", text.lower().partition("e")[0]):
        raise ValueError(f"{text!r} is no whole number")
    mantissa, _, exponent = text.lower().replace("_", "").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, shift = whole + fraction, int(exponent or 0) - len(fraction)
    if shift < 0:  # 2.50e1: what is cut off must be zeros
        if digits.lstrip("+-")[shift:].strip("0"):
            raise ValueError(f"{text!r} is no whole number")
        digits = digits[:shift]
    number = int(digits if digits.lstrip("+-") else 0) * 10 ** max(shift, 0)
    if abs(number) > LARGEST:
        raise ValueError(f"{text!r} is above 1e18")
    return number


def read_number(text: str) -> float:
    """A finite float; raises ValueError for anything else."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not finite")
    return number


def read_whole_numbers(text: str) -> tuple[int, ...]:
    """A tuple of ints from `256,256`; raises ValueError for anything else."""
    return tuple(
        read_whole_number(entry.strip()) for entry in text.strip("()[] ").removesuffix(",").split(",")
    )


KINDS: dict[Any, Kind] = {
    int: Kind(
        read_whole_number,
        "a whole number such as 5000 or 1e6",
        "INT",
        lambda value: f"{value:_}" if value >= 10_000 else str(value),
    ),
    float: Kind(read_number, "a finite number such as 0.5 or 3e-4", "FLOAT", repr),
    str: Kind(str, "a text", "TEXT"),
    Path: Kind(Path, "a path", "PATH"),
    tuple[int, ...]: Kind(
        read_whole_numbers,
        "whole numbers with commas between them, such as 256,256",
        "INT,INT,...",
        lambda value: ",".join(map(str, value)),
    ),
    tuple[str, ...]: Kind(
        lambda text: tuple(text.split()),
        "one or more names with spaces between them",
        "NAME ...",
        " ".join,
    ),
    tuple[Path, ...]: Kind(
        lambda text: tuple(map(Path, text.split(SEPARATOR))),
        "one or more paths with spaces between them",
        "PATH ...",
        lambda value: SEPARATOR.join(map(str, value)),
    ),
}


def kind_of(annotation: Any) -> Kind | None:
    """The kind of a field's type: one of `KINDS`, one of them or None, or a choice of texts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and NoneType in arguments and len(arguments) == 2:
        inner = kind_of(next(argument for argument in arguments if argument is not NoneType))
        return inner and inner._replace(show=lambda value: "none" if value is None else inner.show(value))
    if origin is Literal:

        def choose(text: str) -> str:
            if text not in arguments:
                raise ValueError(nearest(text, arguments))
            return text

        return Kind(choose, "one of " + ", ".join(arguments), "{" + ",".join(arguments) + "}")
    # tyro hands over typing.Tuple[int, ...], which does not equal tuple[int, ...].
    return KINDS.get(tuple[arguments] if origin is tuple else annotation)


def takes_many(annotation: Any) -> bool:
    """Whether it stands for all words up to the next flag."""
    return kind_of(annotation) in (KINDS[tuple[str, ...]], KINDS[tuple[Path, ...]])


def flag_of(field: str) -> str:
    """`--score-scale` for the field `score_scale`."""
    return "--" + field.replace("_", "-")


class Parser:
    """The arguments of one command.

    Args:
      program: what is typed before them, such as `qsm train qsm`.
      description: a sentence for the help.
      groups: a dataclass of options for each title of the help.
      positionals: the arguments without flags, in order.
      subject: whose options they are, for errors: `agent 'qsm'`.
      foreign: flags that this command lacks, and whose they are: `{"--score-scale": "agent 'qsm'"}`.
    """

    def __init__(
        self,
        program: str,
        description: str,
        groups: Mapping[str, type] | None = None,
        positionals: Sequence[Positional] = (),
        subject: str | None = None,
        foreign: Mapping[str, str] | None = None,
    ) -> None:
        self.program = program
        self.description = description
        self.groups = groups or {}
        self.positionals = positionals
        self.subject = subject or repr(program)
        self.foreign = foreign or {}
        self.fields: dict[str, Any] = {}
        for group in self.groups.values():
            hints = get_type_hints(group)
            self.fields |= {field.name: hints[field.name] for field in dataclasses.fields(group)}
        self.flags = {flag_of(name): name for name in self.fields}
        self.flags |= {
            "--no" + flag[1:]: name for flag, name in self.flags.items() if self.fields[name] is bool
        }

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Values of the positionals by name and an instance of each group by its title.

        Raises:
          UserError: a mistake in `arguments`, told in one line.
          SystemExit: status 0, after help was asked for and printed.
        """
        if set(_before_dashes(arguments)) & {"-h", "--help"}:
            self._build(["--help"])
        built = self._build(self.check(arguments))
        result = {positional.name: getattr(built, positional.name) for positional in self.positionals}
        for title, group in self.groups.items():
            values = getattr(built, _identifier(title))
            result[title] = self._instance(group, values)
        return result

    def check(self, arguments: Sequence[str]) -> list[str]:
        """The same arguments as `--flag=value ... -- positional ...`, each one known and of its type."""
        options: dict[str, str] = {}
        words: list[str] = []
        queue = deque(arguments)
        sequence = None  # the last option that took several numbers, for a hint
        while queue:
            word = queue.popleft()
            if word == "--":
                words += queue
                break
            if not word.startswith("-") or NUMBER.fullmatch(word):
                words.append(word)
                continue
            flag, name = self._find(word)
            _, equals, text = word.partition("=")
            if self.fields[name] is bool:
                if equals or (queue and queue[0].lower() in ("true", "false", "yes", "no", "on", "off")):
                    on, off = [known for known, of in self.flags.items() if of == name]
                    raise UserError(f"Option '{on}' is a switch and takes no value. Write {on} or {off}")
                options[name] = flag
                continue
            kind = kind_of(self.fields[name])
            assert kind is not None, f"options of type {self.fields[name]} are not supported"
            if not equals and queue and not queue[0].startswith("--"):
                text = queue.popleft()
            if not text:
                raise UserError(f"Option '{flag}' needs a value: {kind.allowed}")
            while takes_many(self.fields[name]) and queue and not queue[0].startswith("-"):
                text += SEPARATOR + queue.popleft()
            self._check_value(flag, kind, text)
            sequence = flag if kind.metavar.count("INT") > 1 else None
            options[name] = f"{flag}={text}"
            if sequence and queue and re.fullmatch(r"\d+", queue[0]):
                raise UserError(
                    f"Unexpected argument '{queue[0]}'. Write {flag} {text},{queue[0]} with commas"
                )
        if self.positionals and takes_many(self.positionals[-1].type):
            first = len(self.positionals) - 1
            words[first:] = [SEPARATOR.join(words[first:])] if words[first:] else []
        self._check_words(words)
        return [*options.values(), "--", *words]

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

    def _check_value(self, name: str, kind: Kind, text: str) -> None:
        try:
            kind.read(text)
        except ValueError as error:
            hint = f".{error}" if kind.metavar.startswith("{") else ""
            raise UserError(f"{name} is '{text}'; it must be {kind.allowed}{hint}") from None

    def _check_words(self, words: Sequence[str]) -> None:
        usage = " ".join([self.program, *(positional.shown for positional in self.positionals)])
        usage += " [options]" if self.fields else ""
        if len(words) > len(self.positionals):
            extra = words[len(self.positionals)]
            flag = flag_of(extra.partition("=")[0])
            meant = f" Did you mean '--{extra.replace('_', '-')}'?" if flag in self.flags else ""
            raise UserError(f"Unexpected argument '{extra}'.{meant} Usage: {usage}")
        for positional in self.positionals[len(words) :]:
            if positional.default is dataclasses.MISSING:
                raise UserError(f"{positional.name.upper()} is missing. Usage: {usage}{positional.hint}")
        for positional, text in zip(self.positionals, words, strict=False):
            if not text:
                raise UserError(f"{positional.name.upper()} is empty. Usage: {usage}{positional.hint}")

    def _build(self, arguments: Sequence[str]) -> Any:
        """What tyro makes of `arguments`, which have passed `check`."""
        import tyro

        fields: list[Any] = []
        for positional in self.positionals:
            config = tyro.conf.arg(metavar=positional.shown, help=positional.help)
            annotation = Annotated[tyro.conf.Positional[positional.type], config]
            default = dataclasses.field(default=positional.default)
            fields.append((positional.name, annotation, default))
        for title, group in self.groups.items():
            unchecked = _unchecked(group)
            name = _identifier(title)
            annotation = Annotated[unchecked, tyro.conf.arg(name=title)]
            fields.append((name, annotation, dataclasses.field(default_factory=unchecked)))
        target = dataclasses.make_dataclass("Arguments", fields)
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint):
                return tyro.cli(
                    target,
                    prog=self.program,
                    description=self.description,
                    args=list(arguments),
                    config=(tyro.conf.OmitArgPrefixes,),
                    registry=_registry(),
                )
        except SystemExit as exit:
            if exit.code:  # `check` let something through: that is our bug, not the caller's mistake
                raise RuntimeError(f"tyro refused {arguments}: {complaint.getvalue()}") from exit
            raise

    def _instance(self, group: type, values: Any) -> Any:
        """`group` with its checks; their ValueError names fields, the caller's line names flags."""
        try:
            return group(**{field.name: getattr(values, field.name) for field in dataclasses.fields(group)})
        except ValueError as error:
            raise UserError(self.with_flags(str(error))) from error

    def with_flags(self, message: str) -> str:
        """`message` with fields written as flags: its first word, and any that cannot be plain English."""

        def replace(match: re.Match[str]) -> str:
            word = match[0]
            known = word in self.fields and (match.start() == 0 or "_" in word)
            return flag_of(word) if known else word

        return re.sub(r"(?<![\w'-])\w+", replace, message)  # what was given stands in quotes


def show_options(config: Any) -> list[str]:
    """A line for each option of `config`, in the form that the command line reads, and what differs."""
    defaults, hints = type(config)(), get_type_hints(type(config))
    rows = []
    for field in dataclasses.fields(config):
        value, default, flag = getattr(config, field.name), getattr(defaults, field.name), flag_of(field.name)
        if hints[field.name] is bool:
            row, usual = (flag if value else "--no" + flag[1:]), ("on" if default else "off")
        else:
            kind = kind_of(hints[field.name])
            assert kind is not None
            if value is None:  # there is no text for it: left out, it is none
                rows.append((f"# {flag} none", ""))
                continue
            row, usual = f"{flag} {kind.show(value)}", kind.show(default)
        rows.append((row, f"# default: {usual}" if value != default else ""))
    width = max(len(row) for row, _ in rows)
    return [f"{row:{width}}  {note}".rstrip() for row, note in rows]


def _before_dashes(arguments: Sequence[str]) -> Iterable[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _identifier(title: str) -> str:
    return "group_" + re.sub(r"\W", "_", title)


def _unchecked(group: type) -> type:
    """`group` without its checks: tyro would print a box for their ValueError."""
    members = {"__post_init__": lambda self: None, "__doc__": group.__doc__, "__module__": group.__module__}
    return type(group.__name__, (group,), members)


def _registry() -> Any:
    """The constructors of tyro with ours before them."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind = kind_of(info.type)
        if kind is None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.metavar,
            instance_from_str=lambda texts: kind.read(texts[0]),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [kind.show(value)],
        )

    return registry

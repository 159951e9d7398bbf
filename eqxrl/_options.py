"""What a command line says is to be trained."""

import ast
import dataclasses
import inspect
import textwrap
from typing import Annotated, Any

import tyro

from eqxrl.algorithms import PRESETS
from eqxrl.algorithms import preset as find_preset
from eqxrl.sweeps._space import Range
from eqxrl.sweeps._text import parse
from eqxrl.training import Run
from eqxrl.training._metrics import plain
from eqxrl.training._runs import find_algorithm

_WITH_VALUE = ("--algo", "--preset", "--seed", "--seeds", "--out", "--name", "--resume", "--folder", "--samples", "--chunk")
"""Options of `train`, `sweep` and `verify`, besides hyperparameters, that are followed by a value."""

ENV = "--env."
"""What options of the environment begin with. Only the environment knows which ones there are."""


class Chosen:
    """What a command line says is to be trained.

    It is read twice: which hyperparameters there are, and their defaults, depends on the environment, the algorithm and the preset, or
    on the run to be resumed. These are looked for first, and then everything is parsed.
    """

    def __init__(self, argv: list[str], swept: bool = False):
        self.argv, env_options = _without_env_options(argv)
        self.env_kwargs = {name.removeprefix(ENV).replace("-", "_"): _value(text) for name, text in env_options.items()}
        self.options, tokens = dict(env_options), iter(self.argv)
        for token in tokens:
            option, equals, value = token.partition("=")
            if option.startswith("--hp.") or option in _WITH_VALUE:
                self.options[option] = value if equals else next(tokens, "?")  # if it is missing, the parser says so
            elif not token.startswith("-"):
                self.options.setdefault("environment", token)
        self.env_id, self.preset = self.options.get("environment"), None
        if self.options.get("--resume", "?") != "?":
            hp = Run(self.options["--resume"]).config.create().hp
            self.about = "Hyperparameters of the run, of which only total_timesteps can be changed, to more."
        else:
            name, wanted = self.options.get("--algo", "ppo"), self.options.get("--preset")
            self.cls = find_algorithm(name)
            if self.env_id and wanted != "default" and (wanted or name in PRESETS.get(self.env_id, {})):
                self.preset = find_preset(self.env_id, name, wanted)
            hp = self.preset.hparams() if self.preset else self.cls.HParams()
            source = f"preset {self.preset.name}" if self.preset else "its defaults"
            self.about = f"Hyperparameters of {self.cls.__name__}, {source}."
        if swept:
            self.about += " A value, a list (0,0.01), or for floats a range: 1e-4:1e-2, or 1e-4:1e-2:log, with :7 for 7 points of it."
        self.HP = self._flags(hp, swept)

    def _flags(self, hp: Any, swept: bool) -> Any:
        """A dataclass for tyro, which takes jaxtyping's scalars for constants. For a sweep, every option is a text."""
        self.defaults: dict[str, Any] = {}
        fields, docs, annealed = [], _field_docs(type(hp)), self.preset.anneal if self.preset else ()
        for f in dataclasses.fields(hp):
            value, text = getattr(hp, f.name), docs.get(f.name, "")
            if f.name in annealed:
                value, text = value.init_value, f"{text} It goes linearly to 0 over the run."
            value = plain(value) if hasattr(value, "shape") and not value.shape else value
            kind: Any = tyro.conf.FlagConversionOff[bool] if isinstance(value, bool) else type(value)
            if value is None or callable(value):
                text, value, kind = f"{text} {value}, if no number is given.", None, float | None
            elif not isinstance(value, bool | int | float | str):
                continue  # what can't be written on a command line
            self.defaults[f.name] = value
            if swept:
                text, value, kind = f"{text} {value}, if nothing is given.", None, str | None
            fields.append((f.name, Annotated[kind, tyro.conf.arg(help=text.strip())], dataclasses.field(default=value)))
        return dataclasses.make_dataclass("HP", fields, frozen=True)

    def given(self, hp: Any) -> dict[str, Any]:
        """The hyperparameters that were set on the command line."""
        return {f.name: getattr(hp, f.name) for f in dataclasses.fields(hp) if getattr(hp, f.name) != f.default}

    def create(self, hp: Any) -> Any:
        if self.env_id is None:
            raise ValueError("name an environment, as in: eqxrl train CartPole-v1, or a run, as in: eqxrl train --resume RUN")
        return self._create(self.given(hp))

    def _create(self, given: dict[str, Any]) -> Any:
        if self.preset:
            return self.preset.create(self.env_kwargs, **given)
        return self.cls.create(self.env_id, env_kwargs=self.env_kwargs, hp=self.cls.HParams(**given))

    def swept(self, hp: Any) -> tuple[Any, dict[str, Any]]:
        """The algorithm with the values that are fixed, and what is swept."""
        values = {name: parse(name, text, self.defaults[name]) for name, text in self.given(hp).items()}
        space = {name: x for name, x in values.items() if isinstance(x, list | Range)}
        if self.env_id is None or not space:
            raise ValueError("name an environment and what to sweep: eqxrl sweep CartPole-v1 --hp.learning-rate 1e-4:1e-2:log")
        fixed = {name: x for name, x in values.items() if name not in space}
        return self._create(fixed), space

    def resumed(self, hp: Any) -> Any:
        """The run to go on with, extended if that was asked for."""
        run, given = Run(self.options["--resume"]), self.given(hp)
        others = [x for x in self.options if not x.startswith("--hp.") and x != "--resume"]
        others += [f"--hp.{x.replace('_', '-')}" for x in given if x != "total_timesteps"]
        if others:
            raise ValueError(f"a run is resumed as it was started; leave out {', '.join(others)} (only --hp.total-timesteps may grow)")
        if given:
            run.extend(given["total_timesteps"])
        return run


def _without_env_options(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The rest, and the texts of the environment's options."""
    rest, options, tokens = [], {}, iter(argv)
    for token in tokens:
        option, equals, text = token.partition("=")
        if not option.startswith(ENV):
            rest.append(token)
        elif (value := text if equals else next(tokens, "--")).startswith("--") or option == ENV:
            raise ValueError(f"an option of the environment is given by name, with a value, as in: {ENV}max-episode-steps 500; got {token}")
        else:
            options[option] = value
    return rest, options


def _value(text: str) -> Any:
    """What a text stands for in Python: a number, True (also true), None, a tuple; or else itself."""
    try:
        return ast.literal_eval(text.capitalize() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _field_docs(cls: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, which Python itself doesn't keep."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
        for statement, after in zip(body, body[1:]):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[ast.unparse(statement.target)] = " ".join(str(after.value.value).split())
    return docs

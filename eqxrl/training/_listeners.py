"""Those who listen to a run: callbacks and loggers."""

import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from eqxrl.training._callback import Callback, check_hooks, encode_state, overrides
from eqxrl.training._loggers import AbstractLogger
from eqxrl.training._metrics import plain


def check_listeners(name: str, listeners: Any, kind: type) -> list[Any]:
    """**Raises:** `TypeError` where the argument `name` of a `Trainer` isn't a list of callbacks, or of loggers."""
    if not isinstance(listeners, Iterable):
        raise TypeError(f"Trainer({name}=...) takes a list, got {type(listeners).__name__}; pass {name}=[...]")
    listeners = list(listeners)
    for x in listeners:
        if not isinstance(x, kind):
            got = f"the class {x.__name__}; pass {x.__name__}(...)" if isinstance(x, type) else type(x).__name__
            raise TypeError(f"Trainer({name}=...) takes instances of {kind.__name__}, got {got}")
        if isinstance(x, Callback):
            check_hooks(x)
    return listeners


class Listeners:
    """The callbacks and loggers of one run. What a callback raises ends the run; what a logger raises doesn't."""

    def __init__(self, trainer: Any, algo: Any):
        self._trainer = trainer
        self._algo = algo
        kinds = [type(x).__name__ for x in trainer.callbacks]
        names = [k if kinds.count(k) == 1 else f"{k}-{kinds[:i].count(k) + 1}" for i, k in enumerate(kinds)]
        self._callbacks = dict(zip(names, trainer.callbacks, strict=True))
        self.loggers: list[AbstractLogger] = []
        """Those that want rows."""
        self._failed: set[int] = set()
        self._closing: list[Callable[[], Any]] = []
        self._row: dict[str, Any] = {}

    def open(self, hyperparameters: dict[str, Any], states: dict[str, Any], resumed_at: int | None) -> None:
        """Sets up the callbacks, gives them their `states`, and starts the loggers."""
        for name, callback in self._callbacks.items():
            callback.setup(self._trainer, self._algo, self._trainer.state)
            self._closing.append(lambda x=callback: x.teardown(self._trainer, self._algo, self._trainer.state))
            if name in states:
                callback.state = states[name]
        if lost := [name for name in states if name not in self._callbacks]:
            warnings.warn(f"the checkpoint holds the state of callbacks that aren't there now: {', '.join(lost)}", stacklevel=3)
        for logger in self._trainer.loggers:
            if self._guarded(logger, "start", hyperparameters, resumed_at):
                self.loggers.append(logger)
                self._closing.append(lambda x=logger: self._guarded(x, "close"))

    def close(self) -> None:
        """All of them, whatever some of them raise."""
        under_way, failed = sys.exception(), None
        for close in self._closing:
            try:
                close()
            except Exception as e:
                failed = failed or e
        if failed is not None and under_way is None:
            raise failed
        if failed is not None:
            warnings.warn(f"a callback's teardown failed as well: {failed!r}", stacklevel=3)

    def hear(self, *hooks: str) -> bool:
        """Does any callback do anything in one of these hooks?"""
        return any(overrides(callback, hook) for callback in self._callbacks.values() for hook in hooks)

    def call(self, hook: str, *args: Any, state: Any = None) -> None:
        for callback in self._callbacks.values():
            getattr(callback, hook)(self._trainer, self._algo, self._trainer.state if state is None else state, *args)

    def states(self) -> dict[str, Any]:
        """What the callbacks want to keep, as JSON."""
        return {name: encode_state(x, name) for name, callback in self._callbacks.items() if (x := callback.state) is not None}

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds to the row that the loggers get next."""
        if self.loggers:
            self._row |= {k: plain(x) for k, x in values.items()}

    def send_row(self) -> None:
        if self._row:
            for logger in self.loggers:
                self._guarded(logger, "log", self._trainer.env_steps, self._row)
            self._row, self._trainer.run.last_row = {}, self._trainer.env_steps

    def _guarded(self, logger: AbstractLogger, method: str, *args: Any) -> bool:
        """Calls a logger with its own copy of the values. Its failure is no reason to stop, except one to make its file before
        there is anything to lose."""
        try:
            getattr(logger, method)(*copy.deepcopy(args))
        except Exception as e:
            if method == "start" and isinstance(e, OSError) and e.filename is not None:
                raise
            if id(logger) not in self._failed:
                self._failed.add(id(logger))
                name, where = type(logger).__name__, self._trainer.run.where()
                lost = f"Training goes on; what {name} misses is lost, and it won't be mentioned again"
                warnings.warn(f"{name}.{method} failed {where}: {e!r}. {lost}", stacklevel=3)
            return False
        return True

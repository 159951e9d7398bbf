"""Values of a sweep as they are written on a command line."""

from typing import Any

from eqxrl.sweeps._space import log_uniform, uniform


def parse(name: str, text: str, like: Any) -> Any:
    """`1e-4:1e-2` (a range), `1e-4:1e-2:log`, `1e-4:1e-2:log:7` (so many points of it), `0,0.01` (a list), or a single value, which is
    returned as it is.

    **Arguments:** `like`: the default, which says whether the values are integers, flags or floats.

    **Raises:** `ValueError`, which names the option.
    """

    def wrong(why: str) -> ValueError:
        return ValueError(f"--hp.{name.replace('_', '-')} got {text!r}: {why}")

    def value(x: str) -> Any:
        try:
            if isinstance(like, bool):
                return {"true": True, "false": False}[x.strip().lower()]
            return int(x) if isinstance(like, int) else float(x)
        except (ValueError, KeyError):
            kind = "True or False" if isinstance(like, bool) else "an integer" if isinstance(like, int) else "a number"
            raise wrong(f"{x!r} isn't {kind}; pass a value, a list (1,2,3), or a range (low:high, or low:high:log)") from None

    if ":" not in text:
        values = [value(x) for x in text.split(",")]
        return values if len(values) > 1 else values[0]
    if isinstance(like, int):
        raise wrong("it sets a shape or picks a branch, so it takes a list, such as 4,8, and each value compiles a program of its own")
    low, high, *rest = text.split(":")
    log = rest[:1] == ["log"]
    rest = rest[log:]
    if len(rest) > 1 or not all(x.isdigit() for x in rest):
        raise wrong("a range is low:high or low:high:log, and may end in a number of points, as in 1e-4:1e-2:log:7")
    try:
        return (log_uniform if log else uniform)(value(low), value(high), *map(int, rest))
    except ValueError as e:
        raise e if str(e).startswith("--hp.") else wrong(str(e)) from None

import difflib
from collections.abc import Iterable


def unknown(suite: str, env_id: str, known: Iterable[str]) -> ValueError:
    """What to raise for an `env_id` that `suite` doesn't know: names the nearest that it does."""
    by_bare = {name.rpartition("/")[2].lower(): name for name in known}
    bare = env_id.rpartition("/")[2].lower()
    near = [by_bare[name] for name in difflib.get_close_matches(bare, by_bare, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(by_bare.values())}"
    return ValueError(f"{suite} has no environment {env_id!r}; {hint}")

"""What holds of the package as a whole: which names mean what, who may import whom, and that a program is compiled once."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import eqxrl
from eqxrl import PPO, PPOHParams
from eqxrl.algorithms import MakeMLP
from eqxrl.testing._probe import probe

ROOT = Path(eqxrl.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}

# Who may import whom. `envs` and `nn` know no other family; no room knows one that is built upon it.
BASE = {"_typing", "_structs"}
FAMILIES = {"envs", "nn", "advantages", "losses", "collectors", "learners", "evaluators", "viz"}
MAY_IMPORT = {
    "_typing": set(),
    "_xla": set(),
    "_schedules": {"_typing"},
    "_structs": {"_typing"},
    "envs": BASE,
    "nn": BASE,
    "advantages": BASE,
    "losses": BASE | {"nn"},
    "collectors": BASE | {"envs", "nn"},
    "evaluators": BASE | {"envs", "nn"},
    "learners": BASE | {"nn", "losses"},
    "viz": BASE | {"envs"},
    "algorithms": BASE | FAMILIES | {"_schedules"},
    "training": BASE | FAMILIES | {"_schedules", "algorithms"},
    "verification": (BASE | FAMILIES | {"_schedules", "algorithms"}) - {"viz"},
    "testing": (BASE | FAMILIES | {"_schedules", "algorithms", "verification"}) - {"viz"},
    "cli": BASE | FAMILIES | {"_schedules", "_xla", "algorithms", "training", "verification"},
}
OPEN_CLASSES = {"Callback"}
"""Made to be subclassed by users although it isn't abstract: every hook has a default, which does nothing."""
HEAVY = ["gymnax", "matplotlib", "rich", "tyro", "safetensors", "pandas", "seaborn", "lightning", "torch", "wandb", "tensorboardX"]


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in it, also within functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def is_ours(cls: type) -> bool:
    return str(cls.__module__).split(".")[0] == "eqxrl"


def classes() -> list[type]:
    for module in pkgutil.walk_packages(eqxrl.__path__, "eqxrl."):
        importlib.import_module(module.name)
    found, todo = set(), [object]
    while todo:
        for cls in type.__subclasses__(todo.pop()):
            if cls not in found:
                found.add(cls)
                todo.append(cls)
    ours = [cls for cls in found if is_ours(cls) and "<locals>" not in cls.__qualname__]
    return sorted(ours, key=lambda cls: cls.__qualname__)


def is_abstract(cls: type) -> bool:
    return inspect.isabstract(cls) or bool(getattr(cls, "__abstractvars__", None))


def parents(cls: type) -> list[type]:
    return [base for base in cls.__mro__[1:] if is_ours(base)]


def test_abstract_classes_are_named_so():
    for cls in classes():
        assert is_abstract(cls) == cls.__name__.lstrip("_").startswith("Abstract"), cls


def test_concrete_classes_are_final():
    for cls in classes():
        for parent in parents(cls):
            assert is_abstract(parent) or parent.__name__ in OPEN_CLASSES, f"{cls} is a subclass of {parent}, which isn't abstract"


def test_these_tests_can_fail():
    class Concrete(eqx.Module):
        pass

    class AbstractVariable(eqx.Module):
        x: eqx.AbstractVar[int]

    assert not is_abstract(Concrete) and is_abstract(AbstractVariable) and is_abstract(eqxrl.AbstractAdvantage)
    assert {"GAE", "PPO", "AbstractLearner", "PPOHParams", "ShapeError"} <= {cls.__name__ for cls in classes()}
    nested = "def f():\n    from eqxrl import training\n    import eqxrl.viz._gif\n    from eqxrl.nn._mlp import x"
    assert {"eqxrl.training", "eqxrl.viz._gif", "eqxrl.nn._mlp"} <= imports(ast.parse(nested))


@pytest.mark.parametrize("file", SOURCES)
def test_imports_go_one_way(file):
    if file == "__init__.py":
        return
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {path.stem for path in ROOT.glob("*.py")}
    assert rooms - {"__init__"} == set(MAY_IMPORT), "a room that isn't in MAY_IMPORT"
    for name in imports(SOURCES[file]):
        parts = name.split(".")
        if parts[0] == "eqxrl" and len(parts) > 1:
            other = parts[1]
            if room(file) == "cli" and other not in MAY_IMPORT:
                continue  # the command takes public names from the table of contents
            assert other == room(file) or other in MAY_IMPORT[room(file)], f"{file} imports {name}"


def test_rooms_are_in_order():
    """The table above has no cycle: everybody comes after those whom they import."""
    before: set[str] = set()
    for name, others in MAY_IMPORT.items():
        assert others <= before | ({"viz"} if name == "algorithms" else set()), name
        before.add(name)


@pytest.mark.parametrize("file", SOURCES)
def test_what_is_never_imported(file):
    names = imports(SOURCES[file])
    assert "__future__.annotations" not in names, "it turns eqx.AbstractVar[...] into an ordinary field"
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not {name.split(".")[0] for name in names} & forbidden, "loading one of these runs code"
    for node in ast.walk(SOURCES[file]):
        assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), "allow_pickle runs code"


@pytest.mark.parametrize("file", SOURCES)
def test_structs_have_no_init_of_their_own(file):
    """The constructor that is checked is the one that equinox writes."""
    for node in ast.walk(SOURCES[file]):
        if isinstance(node, ast.ClassDef) and any(isinstance(d, ast.Name) and d.id == "typed" for d in node.decorator_list):
            methods = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
            assert "__init__" not in methods, f"{node.name} is @typed, but its own __init__ isn't checked field by field"


def public_names() -> list[tuple[str, str, str]]:
    """`(room, name, file)` of what the table of contents and the rooms re-export."""
    found = []
    for file, tree in SOURCES.items():
        if not file.endswith("__init__.py"):
            continue
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module != "eqxrl":
                target = node.module.removeprefix("eqxrl.").replace(".", "/")
                found += [(file, alias.asname or alias.name, target) for alias in node.names]
    return found


def test_public_names_are_documented():
    definitions = (ast.ClassDef, ast.FunctionDef)
    names = public_names()
    assert len(names) > 80
    for file, name, target in names:
        source = SOURCES.get(f"{target}.py") or SOURCES[f"{target}/__init__.py"]
        for node in source.body:
            if isinstance(node, definitions) and node.name == name:
                assert ast.get_docstring(node), f"{name}, in {target}.py, is public and has no docstring"
    for file, tree in SOURCES.items():
        if file.endswith("__init__.py"):
            assert ast.get_docstring(tree), f"{file} has no docstring"


def test_rooms_re_export_explicitly():
    """`from eqxrl.room._file import X as X`: a type checker takes no other import for a re-export."""
    for file, tree in SOURCES.items():
        if file.endswith("__init__.py"):
            for node in tree.body:
                for alias in getattr(node, "names", []):
                    assert alias.asname == alias.name.split(".")[-1], f"{file}: {alias.name}"


def test_import_is_light():
    script = f"import eqxrl, sys; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert run.stdout.strip() == "[]"


def test_one_compile():
    """Seeds, iterations, and values of the numbers share one program."""
    env, params = probe("discrete")
    hp = PPOHParams(num_envs=3, num_steps=4, num_minibatches=2, num_epochs=2, total_timesteps=24, eval_freq=12, num_seeds_per_eval=2)

    def algo(learning_rate, gamma):
        changed = eqx.tree_at(lambda hp: (hp.learning_rate, hp.gamma), hp, (jnp.float32(learning_rate), jnp.float32(gamma)))
        return PPO.create(env=env, env_params=params, hp=changed, actor_critic=MakeMLP((4,)))

    train = eqx.filter_jit(eqx.debug.assert_max_traces(lambda algo, key: algo.train(key), max_traces=1))
    for seed, ppo in enumerate([algo(1e-3, 0.9), algo(2e-3, 0.99)]):
        train(ppo, jax.random.key(seed))
    with pytest.raises(RuntimeError, match="can only be traced"):
        train(algo(1e-3, 0.9), jax.random.split(jax.random.key(0))[0][None])

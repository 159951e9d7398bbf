"""What holds of the package as a whole: which names mean what, who may import whom, and that a program is compiled once."""

import ast
import dataclasses
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
from eqxrl.algorithms import ALGORITHMS, MakeNetwork
from eqxrl.testing._probe import probe

ROOT = Path(eqxrl.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}

# Who may import whom, floor by floor: nobody knows a room that is built upon its own. What is listed first is below.
FLOORS: list[set[str]] = [
    {"_command", "_extras", "_threefry", "_typing", "_xla", "_user_code"},
    {"_cond", "_devices", "_schedules", "_structs", "spaces"},
    {"envs", "nn", "buffers"},
    {"collectors", "advantages", "evaluators", "viz"},
    {"losses"},
    {"learners"},
    {"algorithms"},
    {"training", "verification"},
    {"sweeps"},
    {"_options", "_program_cache"},
    {"cli", "testing"},
]
STRANGERS = {("training", "verification"), ("verification", "training"), ("verification", "viz"), ("testing", "training"),
             ("sweeps", "verification"), ("testing", "sweeps"), ("testing", "_options"),
             ("testing", "_program_cache"), ("_program_cache", "sweeps"), ("_program_cache", "verification")}
"""Pairs that don't know each other although their floors would let them."""


def may_import(room: str, other: str) -> bool:
    floor = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    return room == other or (floor[other] < floor[room] and (room, other) not in STRANGERS)


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
    forward = [cls for cls in found if str(type(cls).__module__).startswith("beartype")]  # stand in for names in quotes
    ours = [cls for cls in found if is_ours(cls) and "<locals>" not in cls.__qualname__ and cls not in forward]
    return sorted(ours, key=lambda cls: cls.__qualname__)


def is_abstract(cls: type) -> bool:
    return inspect.isabstract(cls) or bool(getattr(cls, "__abstractvars__", None))


def parents(cls: type) -> list[type]:
    return [base for base in cls.__mro__[1:] if is_ours(base)]


def test_abstract_classes_are_named_so():
    for cls in classes():
        assert is_abstract(cls) == cls.__name__.lstrip("_").startswith("Abstract"), cls


def test_concrete_classes_are_final():
    """But for errors, which are told apart by what they inherit from."""
    for cls in classes():
        for parent in parents(cls) if not issubclass(cls, BaseException) else []:
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
    known = set().union(*FLOORS)
    assert rooms - {"__init__"} == known, "a room that is on no floor"
    for name in imports(SOURCES[file]):
        parts = name.split(".")
        if parts[0] == "eqxrl" and len(parts) > 1:
            other = parts[1]
            if room(file) == "cli" and other not in known:
                continue  # the command takes public names from the table of contents
            assert may_import(room(file), other), f"{file} imports {name}"


def test_only_the_adapter_knows_gymnax():
    users = {file for file, tree in SOURCES.items() if any(name.split(".")[0] == "gymnax" for name in imports(tree))}
    assert users <= {"envs/suites/_gymnax.py", "viz/_draw.py", "_typing.py"}


def test_no_file_is_long():
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in SOURCES}
    assert max(lines.values()) <= 400, max(lines, key=lines.__getitem__)


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
                found += [(file, alias.asname or alias.name, target) for alias in node.names if alias.name != "*"]
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
                    if (file, alias.name) == ("__init__.py", "*"):
                        continue  # the algorithms', which are exported in one place
                    assert alias.asname == alias.name.split(".")[-1], f"{file}: {alias.name}"


def test_import_is_light():
    script = f"import eqxrl, sys; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_does_not_start_jax():
    """`set_cpu_flags` would come too late: a preset or a default must make no array before it is used."""
    script = "import eqxrl, jax._src.xla_bridge as b; [getattr(eqxrl, n) for n in dir(eqxrl)]; print(b.backends_are_initialized())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert run.stdout.strip() == "False"


def frames_to_the_environment(algo):
    """How many of the package's functions are between `train` and the environment's step, which is counted."""
    depths = []

    def step(self, key, state, action, params):
        frames = [f for f in inspect.stack() if Path(f.filename).is_relative_to(ROOT)]
        names = [f.function for f in frames]
        depths.append(1 + names.index("train"))
        return type(env).step(env, key, state, action, params)

    env = algo.env

    class Watched(type(env)):
        pass

    Watched.step = step
    watched = object.__new__(Watched)
    for field in dataclasses.fields(env):
        object.__setattr__(watched, field.name, getattr(env, field.name))
    jax.clear_caches()
    algo = eqx.tree_at(lambda a: a.env, algo, watched)
    eqx.filter_eval_shape(lambda key: algo.train(key, skip_initial_evaluation=True), jax.random.key(0))
    return max(depths)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nine_frames_from_train_to_the_environment(name):
    """So that a traceback, or a debugger, shows a way that a reader can follow."""
    cls = ALGORITHMS[name]
    env, params = probe("box" if name in ("reppo", "td3") else "discrete")
    assert frames_to_the_environment(cls.create(env=env, env_params=params)) <= 9


def test_one_compile():
    """Seeds, iterations, and values of the numbers share one program."""
    env, params = probe("discrete")
    hp = PPOHParams(num_envs=3, num_steps=4, num_minibatches=2, num_epochs=2, total_timesteps=24, eval_freq=12, num_seeds_per_eval=2)

    def algo(learning_rate, gamma):
        changed = eqx.tree_at(lambda hp: (hp.learning_rate, hp.gamma), hp, (jnp.float32(learning_rate), jnp.float32(gamma)))
        return PPO.create(env=env, env_params=params, hp=changed, actor_critic=MakeNetwork("mlp", dict(hidden_sizes=(4,))))

    train = eqx.filter_jit(eqx.debug.assert_max_traces(lambda algo, key: algo.train(key), max_traces=1))
    for seed, ppo in enumerate([algo(1e-3, 0.9), algo(2e-3, 0.99)]):
        train(ppo, jax.random.key(seed))
    with pytest.raises(RuntimeError, match="can only be traced"):
        train(algo(1e-3, 0.9), jax.random.split(jax.random.key(0))[0][None])

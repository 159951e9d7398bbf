"""A user's own file, imported by its path."""

import sys

import pytest

from eqxrl._user_code import from_file, is_user_code


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_what_is_user_code():
    assert is_user_code("my_env.py:Grid") and is_user_code("/a b/my_env.py:Grid")
    assert not is_user_code("CartPole-v1") and not is_user_code("brax/ant") and not is_user_code("my_env.py")


def test_the_same_file_gives_the_same_object(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import dataclasses\n\n@dataclasses.dataclass\nclass Mine:\n    x: int = 3\n\nother = []\n")
    cls = from_file(f"{tmp_path}/mine.py:Mine")
    assert cls(4).x == 4
    monkeypatch.chdir(tmp_path)
    assert from_file("mine.py:Mine") is cls
    assert from_file("./../" + tmp_path.name + "/mine.py:other") is from_file("mine.py:other")


def test_files_of_one_name_are_two_modules(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"value = {value}")
    assert [from_file(f"{tmp_path}/{folder}/mine.py:value") for folder in "ab"] == [1, 2]


def test_a_file_imports_its_neighbours_and_shadows_nobody(tmp_path):
    (tmp_path / "user_code_neighbour.py").write_text("value = 5")
    (tmp_path / "colorsys.py").write_text("raise AssertionError")
    (tmp_path / "mine.py").write_text("import colorsys\nfrom user_code_neighbour import value")
    assert from_file(f"{tmp_path}/mine.py:value") == 5


@pytest.mark.parametrize("where", ["mine.py", "mine:Mine", "mine.py:", "mine.py:Mine.x", ":Mine", ""])
def test_other_forms(where):
    with pytest.raises(ValueError, match="pass a file and the name of what is in it, such as 'path/to/file.py:Name'"):
        from_file(where)


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names the file .*nowhere\.py, which isn't there; the path is taken from /"):
        from_file(f"{tmp_path}/nowhere.py:Mine")
    (tmp_path / "mine.py").write_text("class Walker: pass")
    with pytest.raises(ImportError, match=r"mine\.py has nothing called 'Walke'; did you mean 'Walker'\?"):
        from_file(f"{tmp_path}/mine.py:Walke")
    with pytest.raises(ImportError, match=r"mine\.py has nothing called 'qqqqqq'$"):
        from_file(f"{tmp_path}/mine.py:qqqqqq")
    (tmp_path / "broken.py").write_text("import numpy\n1 / 0")
    for _ in range(2):  # a file that failed can be mended and tried again
        with pytest.raises(ImportError, match=r"importing .*broken\.py raised ZeroDivisionError: division by zero") as error:
            from_file(f"{tmp_path}/broken.py:Mine")
        assert isinstance(error.value.__cause__, ZeroDivisionError)
    (tmp_path / "broken.py").write_text("class Mine: pass")
    assert from_file(f"{tmp_path}/broken.py:Mine").__name__ == "Mine"

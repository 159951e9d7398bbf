import sys

from eqxrl._extras import extra


def test_what_a_package_prints_as_it_is_imported_is_not_the_commands_output(tmp_path, monkeypatch, capsys):
    (tmp_path / "talkative_package.py").write_text("print('hello')\nx = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert extra("talkative_package", "talkative", "a test").x == 3
    monkeypatch.delitem(sys.modules, "talkative_package")
    said = capsys.readouterr()
    assert said.out == "" and said.err == "hello\n"

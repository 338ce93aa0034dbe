"""What the commands of ``stream-train`` have in common."""

import pytest

from emostream import __version__
from emostream.train.commands import card, features
from emostream.train.commands.main import COMMANDS, main


def test_version_and_commands(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"stream-train {__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, capsys):
    def run(arguments):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(card, "run", run)
    assert main(["card", "ekman7"]) == 1
    assert capsys.readouterr().err == "error: torch is not installed: pip install 'emostream[train]'\n"


def test_a_missing_module_of_emostream_is_a_fault(monkeypatch):
    def run(arguments):
        raise ModuleNotFoundError("No module named 'emostream.nothing'", name="emostream.nothing")

    monkeypatch.setattr(card, "run", run)
    with pytest.raises(ModuleNotFoundError):
        main(["card", "ekman7"])


def test_ctrl_c_says_that_finished_features_are_kept(tmp_path, monkeypatch, capsys):
    def read_corpus(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "read_corpus", read_corpus)
    command = ["features", "--corpus", "ravdess", "--data", str(tmp_path), "--cache", str(tmp_path)]
    assert main(command) == 130
    assert "what is finished is kept, and the same command goes on from there" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["fit", "--preset", "tiny"], ["score", "x.jsonl", "--corpus", "emodb"]])
def test_commands_without_data_name_the_option(command, monkeypatch, capsys):
    monkeypatch.delenv("EMOSTREAM_DATA", raising=False)
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert "error: where" in errors and "or set EMOSTREAM_DATA" in errors

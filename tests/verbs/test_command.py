"""The `m1` command: its help, a misspelt verb, and the exit status of every outcome."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from m1jax.errors import InterruptedRunError, UserError
from m1jax.verbs import command, main
from tests.verbs.conftest import TINY

NAMES = (
    *(
        "quickstart",
        "corpus",
        "synthesize",
        "tokenizer",
        "pack",
        "curriculum",
        "train",
        "sft",
        "prefer",
        "rl",
        "eval",
        "needle",
    ),
    *("report", "plan", "generate", "chat", "serve", "import", "export", "doctor"),
)
HEAVY = ("jax", "tensorflow", "torch", "seqio", "grain")


def said(capsys, arguments):
    """Exit status, standard output and standard error."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse
        status = end.code
    return status, *capsys.readouterr()


def loaded(statement, *names):
    """Those of the packages that a fresh Python has loaded after the statement."""
    program = f"import sys\n{statement}\nprint(*({set(names)} & set(sys.modules)), file=sys.stderr)"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ).stderr.split()


def with_report(body, **streams):
    """`m1 report` in a process of its own, with this statement in place of what the verb does."""
    program = f"""
import sys, time, m1jax.verbs.report as report
from m1jax.verbs import main
def instead(config, as_json):
    {body}
report.report = instead
sys.exit(main(["report", "--config", {TINY!r}]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment, **streams
    )


def test_help_names_every_verb_and_loads_nothing(capsys):
    status, out, _ = said(capsys, ["--help"])
    assert status == 0
    for words, (_, summary) in command.VERBS.items():
        assert f"    {words.partition(' ')[0]}" in out
        assert " " in words or summary[:40] in out
    statement = "from m1jax.verbs import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded(statement, "jax", "numpy", "rich", "ml_collections") == []


@pytest.mark.parametrize("words", command.VERBS)
def test_the_help_of_a_verb_shows_an_example_and_its_arguments(capsys, words):
    status, out, _ = said(capsys, [*words.split(), "--help"])
    assert status == 0
    assert f"example:\n  m1 {words} " in out
    assert "--debug" in out
    assert command.VERBS[words][1][1:] in " ".join(out.split())


def test_the_file_of_every_verb_is_in_the_table():
    files = {path.stem for path in pathlib.Path(command.__file__).parent.glob("*.py")}
    assert {module for module, _ in command.VERBS.values()} == files - {
        "__init__",
        "arguments",
        "command",
        "program",
        "tuning",
    }


def test_the_files_of_verbs_load_no_jax():
    files = sorted({module for module, _ in command.VERBS.values()})
    assert loaded("import " + ", ".join(f"m1jax.verbs.{file}" for file in files), *HEAVY) == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["trian"], "unknown verb 'trian', did you mean 'train': see `m1 --help`."),
        (["xyzzy"], f"unknown verb 'xyzzy', known are {', '.join(NAMES)}: see `m1 --help`."),
        (["tokenizer", "repot"], "unknown action of tokenizer 'repot', did you mean 'report': see `m1 --help`."),
        (["tokenizer"], "the following arguments are required: ACTION: see `m1 tokenizer --help`."),
        ([], "the following arguments are required: VERB: see `m1 --help`."),
        (["train", "--confg", "x"], "the following arguments are required: --config: see `m1 train --help`."),
    ],
)
def test_wrong_words_get_one_sentence(capsys, words, answer):
    assert said(capsys, words) == (2, "", f"m1: {answer}\n")


@pytest.mark.parametrize(
    ("error", "status", "answer"),
    [
        (None, 0, ""),
        (UserError("a is no b: give c."), 2, "m1: a is no b: give c.\n"),
        (InterruptedRunError("saved."), 75, "m1: saved.\n"),
        (KeyboardInterrupt(), 130, "m1: interrupted: the same command continues.\n"),
        (ValueError("odd"), 1, "m1: ValueError: odd (--debug shows where).\n"),
        (
            PermissionError(13, "Permission denied", "x"),
            2,
            "m1: x cannot be read or written (permission denied): change its permissions and run the same command "
            "again.\n",
        ),
        (
            RuntimeError("No space left on device"),
            2,
            "m1: the disk that holds the run's folder is full: free some space and run the same command again.\n",
        ),
        (FileNotFoundError(2, "No such file", "x"), 2, "m1: x: No such file: check the path.\n"),
    ],
)
def test_every_outcome_has_its_exit_status(capsys, monkeypatch, error, status, answer):
    def report(config, as_json):
        if error is not None:
            raise error

    monkeypatch.setattr("m1jax.verbs.report.report", report)
    assert said(capsys, ["report", "--config", TINY]) == (status, "", answer)
    if error is not None:
        with pytest.raises(type(error)):
            main(["report", "--config", TINY, "--debug"])


def test_ctrl_c_ends_with_one_sentence():
    process = with_report("print('ready', flush=True); time.sleep(60)", stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "m1: interrupted: the same command continues.\n"
    assert process.returncode == 130


@pytest.mark.parametrize("flushed", [True, False])
def test_where_nobody_reads_the_output_the_command_ends_quietly(flushed):
    read, write = os.pipe()
    os.close(read)
    process = with_report(f"print('x' * 100, flush={flushed})", stdout=write)
    os.close(write)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 1

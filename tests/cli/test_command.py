"""The command around its work: help, versions, mistakes, streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato
from sfumato import cli
from sfumato.checkpoints.metadata import Recipe
from sfumato.checkpoints.picture_files import encode_picture
from sfumato.checkpoints.png import encode_png
from sfumato.cli import console
from sfumato.errors import InputError, NumericalError
from tests.command import Run, run_process


def test_help_shows_options_and_commands_without_torch() -> None:
    code = "import sys, sfumato.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("--steps", "--guidance-scale", "-o, --output", *cli.COMMANDS):
        assert word in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(run: Run, name: str) -> None:
    said = run(name, "--help")
    assert (said.code, said.err) == (0, "")
    assert "Usage: sfumato" in said.out


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out == f"sfumato {sfumato.__version__}\n"


def test_no_words_at_all_tells_how_to_ask(run: Run) -> None:
    said = run()
    assert (said.code, said.out) == (2, "")
    assert 'sfumato "a red apple"' in said.err


MISTAKES = {
    "an unknown option": (["a", "--stepz", "3"], "Did you mean '--steps'?"),
    "words without quotes": (["a", "red", "apple"], 'sfumato "a red apple"'),
    "two prompts": (["a", "-p", "b"], "twice"),
    "no prompt": (["--steps", "3"], "A prompt is needed"),
    "no value": (["a", "--steps"], "requires an argument"),
    "zero steps": (["a", "--steps", "0"], "greater than or equal to 1"),
    "steps without end": (["a", "--steps", "1000000000"], "less than or equal to 1000"),
    "half a step": (["a", "--steps", "1.5"], "valid integer"),
    "guidance nan": (["a", "--cfg-scale", "nan"], "--cfg-scale"),
    "guidance inf": (["a", "--cfg-scale", "inf"], "--cfg-scale"),
    "guidance 1e9": (["a", "--cfg-scale", "1e9"], "--cfg-scale"),
    "width 0": (["a", "-W", "0"], "multiple of 8"),
    "width -8": (["a", "-W", "-8"], "The nearest is 8"),
    "width 7": (["a", "-W", "7"], "The nearest is 8"),
    "height 513": (["a", "-H", "513"], "The nearest is 512"),
    "width 1e9": (["a", "-W", "1000000000"], "from 8 to 8192"),
    "width 512.5": (["a", "-W", "512.5"], "valid integer"),
    "width nan": (["a", "-W", "nan"], "valid integer"),
    "width true": (["a", "-W", "true"], "valid integer"),
    "a size of one side": (["a", "--size", "512"], "looks like 512x768"),
    "two sizes": (["a", "--size", "8x8", "-W", "8"], "either --size or"),
    "seed -2": (["a", "-s", "-2"], "--seed"),
    "seed 2^64": (["a", "-s", str(2**64)], "--seed"),
    "seed abc": (["a", "-s", "abc"], "valid integer"),
    "seeds beyond the end": (["a", "-s", str(2**64 - 1), "-b", "2"], "last seed"),
    "no pictures": (["a", "-b", "0"], "--batch-count"),
    "a million pictures": (["a", "-b", "1000000"], "--batch-count"),
    "eta 1.5": (["a", "--eta", "1.5"], "--eta"),
    "rescale -1": (["a", "--guidance-rescale", "-1"], "--guidance-rescale"),
    "clip skip 0": (["a", "--clip-skip", "0"], "--clip-skip"),
    "an unknown sampler": (["a", "--sampler", "Eulr a"], "Did you mean 'Euler a'?"),
    "a sampler of Python": (["a", "--sampler", "__class__"], "no sampler"),
    "an endless sampler": (["a", "--sampler", "e" * 10**6], "no sampler"),
    "an impossible pair": (["a", "--sampler", "ddim", "--scheduler", "karras"], "no schedule"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, mistake: str) -> None:
    arguments, expected = MISTAKES[mistake]
    said = run(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert expected in said.err
    assert len(said.err) < 500


FAILURES = {
    "a model that is not there": (["a", "-m", "nowhere"], "no model at 'nowhere'"),
    "a file that is no model": (["a", "-m", __file__], "is not a safetensors file"),
    "a name that the hub's cache lacks": (["a", "-m", "no/where"], "hub's cache"),
    "a picture that is not there": (["--from", "no.png"], "no file 'no.png'"),
    "a picture that is none": (["--from", __file__], "not a PNG"),
    "info of nothing": (["info", "no.png"], "no file 'no.png'"),
    "info of a text": (["info", __file__], "neither a picture nor a file of weights"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_one_line_and_exit_code_1(run: Run, failure: str) -> None:
    arguments, expected = FAILURES[failure]
    said = run(*arguments)
    assert (said.code, said.out) == (1, "")
    assert said.err.count("\n") == 1
    assert expected in said.err


def raising(error: BaseException) -> object:
    def fail(words: list[str]) -> int:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("bad", hint="do good"), 2, "bad do good"),
        (NumericalError("NaN in the UNet"), 1, "NaN in the UNet"),
        (MemoryError(), 1, "Not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9e9"), 1, "Not enough memory"),
        (OSError(28, "No space left on device", "a.png"), 1, "a.png: No space left on device."),
        (KeyError("x"), 1, "--debug"),
        (ValueError("two\nlines \x1b[2J"), 1, "two lines \\x1b[2J"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_exception_ends_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    monkeypatch.setattr(cli, "_run", raising(error))
    said = run("x")
    assert (said.code, said.err.count("\n")) == (code, 1)
    assert text in said.err


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", raising(KeyError("x")))
    with pytest.raises(KeyError):
        run("x", "--debug")
    monkeypatch.undo()


def test_a_prompt_may_begin_with_a_dash_or_be_a_command(run: Run) -> None:
    for words in (["--", "--debug"], ["generate", "info"]):
        assert "no model" in run("-m", "nowhere", *words).err or words[0] == "generate"
    assert "no model" in run("generate", "info", "-m", "nowhere").err


def test_a_prompt_that_looks_like_a_command_is_drawn_and_pointed_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_MODEL", "nowhere")
    said = run("docter")
    assert "the command is `sfumato doctor`" in said.err and "no model" in said.err
    assert "the command is" not in run("a doctor").err


def test_options_come_from_the_environment_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_WIDTH", "7")
    assert "The width" in run("a").err
    monkeypatch.setenv("SFUMATO_WIDTH", "8")
    monkeypatch.setenv("SFUMATO_SAMPLING_METHOD", "nonesuch")
    assert "nonesuch" in run("a").err
    monkeypatch.setenv("SFUMATO_SAMPLING_METHOD", "ddim")
    monkeypatch.setenv("SFUMATO_FROM", "no.png")
    assert "no.png" in run("a").err


def test_names_may_be_written_with_underscores(run: Run) -> None:
    said = run("a", "--num_inference_steps", 3, "--negative_prompt", "b", "-m", "nowhere")
    assert "no model" in said.err


def test_the_names_of_samplers_are_listed(run: Run) -> None:
    said = run("samplers")
    assert "Euler a, euler_ancestral" in said.out
    table = json.loads(run("samplers", "--json").out)
    assert {"name", "class", "aliases", "schedulers"} == set(table["samplers"][0])
    assert [row["name"] for row in table["schedulers"]][:1] == ["Karras"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    recipe = Recipe(
        prompt="a \x1b[2Jcat\nin two lines \u202etac",
        steps=3,
        seed=5,
        width=8,
        height=8,
        extra={"Odd\x07 key": "x\ny"},
    )
    path = tmp_path / "cat.png"
    path.write_bytes(encode_png(Image.new("RGB", (8, 8)), recipe))
    return path


def test_info_shows_the_recipe_and_nothing_that_moves_the_cursor(run: Run, picture: Path) -> None:
    said = run("info", picture)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("a \\x1b[2Jcat\nin two lines \\u202etac\n")
    assert "  size              8x8" in said.out
    assert "  Odd\\x07 key       x y" in said.out


def test_info_goes_by_the_content_of_a_picture(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    for suffix in (".jpg", ".webp", ".png"):
        path = tmp_path / "cat.safetensors"
        path.write_bytes(encode_picture(Image.new("RGB", (8, 8)), Recipe(prompt="mi"), suffix))
        assert run("info", path).out.startswith("mi\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    said = run("info", tmp_path / "photo.jpg")
    assert said.code == 1 and "carries no recipe" in said.err


def test_info_as_json_is_the_recipe(run: Run, picture: Path) -> None:
    values = json.loads(run("info", picture, "--json").out)
    assert values["prompt"] == "a \x1b[2Jcat\nin two lines \u202etac"
    assert (values["steps"], values["seed"]) == (3, 5)


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    said = run_process("samplers", stdout=writing)
    os.close(writing)
    assert (said.code, said.err) == (141, "")


def test_closed_streams_are_no_error() -> None:
    for closed in (">&-", "<&-", "2>&-", ">&- 2>&- <&-"):
        command = f"{sys.executable} -m sfumato samplers {closed} >/dev/null"
        done = subprocess.run(["bash", "-c", command.replace(">&- >/dev/null", ">&-")], check=False)
        assert done.returncode == 0, closed


def test_a_narrow_encoding_escapes_what_it_cannot_say(picture: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    said = run_process("info", picture, env=environment)
    assert said.code == 0
    said = run_process("a", "b", "ü\N{SNOWMAN}", env=environment)
    assert said.code == 2
    assert "\\xfc\\u2603" in said.err


def test_log_entries_are_one_line(capfd: pytest.CaptureFixture[str], run: Run) -> None:
    run("--version")
    console.logging.getLogger("sfumato.x").warning("a\nsfumato: error: forged \x1b[1m")
    assert capfd.readouterr().err == "sfumato: warning: a sfumato: error: forged \\x1b[1m\n"


@pytest.mark.parametrize("module", ["sfumato.cli.console", "sfumato.cli.generate", "typer.main"])
def test_an_interruption_while_modules_are_loaded_is_one_line(module: str) -> None:
    code = f"""
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from sfumato.cli import main
sys.exit(main(["a cat"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "sfumato: interrupted\n")

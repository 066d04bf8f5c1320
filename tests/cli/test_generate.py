"""Drawing by the command, with a tiny random model in place of the embedded one."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato import StableDiffusionPipeline, __version__, assets
from sfumato.checkpoints.metadata import Recipe, parse_infotext, to_infotext
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.checkpoints.png import encode_png, read_texts
from sfumato.cli import console, drawing
from sfumato.errors import NumericalError
from sfumato.pipelines.sampler_names import SAMPLERS
from tests.command import Run, Said, run_process, start
from tests.pipelines.tiny import tiny_pipeline

QUICK = ("--steps", 2)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "other"
    tiny_pipeline(seed=9).save_pretrained(folder)
    return folder


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def drawn(said: Said) -> list[str]:
    assert said.code == 0, said.err
    return said.out.splitlines()


def test_a_sentence_becomes_a_picture_and_only_its_path_is_printed(
    run: Run, embedded: Path
) -> None:
    said = run("a red apple", *QUICK)
    (path,) = drawn(said)
    seed = read_recipe(path).seed  # type: ignore[union-attr]
    assert re.fullmatch(rf"outputs/[\d-]+/00000-{seed}\.png", path)
    assert f"seed {seed}," in said.err
    with Image.open(path) as image:
        assert image.size == (16, 16)
    assert [p.name for p in Path("outputs").rglob("*") if p.is_file()] == [Path(path).name]


def test_the_picture_is_the_one_that_the_library_draws(run: Run, model: Path) -> None:
    (path,) = drawn(
        run(
            "a cat", "-n", "dogs", "-m", model, "-s", 5, "--steps", 3, "--cfg-scale", 4.5,
            "-W", 24, "-H", 16, "--clip-skip", 2, "--guidance-rescale", 0.3, "-o", "a.png",
        )
    )  # fmt: skip
    expected = StableDiffusionPipeline.from_pretrained(model)(
        "a cat", negative_prompt="dogs", num_inference_steps=3, guidance_scale=4.5, width=24,
        height=16, clip_skip=1, guidance_rescale=0.3, prompt_syntax="a1111",
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    assert pixels(path) == expected.images[0].tobytes()  # type: ignore[union-attr]


def test_the_same_seed_draws_the_same_file_and_another_one_another(run: Run, model: Path) -> None:
    paths = [drawn(run("a", "-m", model, *QUICK, "-s", seed))[0] for seed in (3, 3, 4)]
    first, second, third = (Path(path).read_bytes() for path in paths)
    assert first == second != third


@pytest.mark.parametrize("seed", [(), ("-s", -1)])
def test_without_a_seed_every_picture_is_another(
    run: Run, model: Path, seed: tuple[object, ...]
) -> None:
    paths = [drawn(run("a", "-m", model, *QUICK, *seed))[0] for _ in range(2)]
    assert pixels(paths[0]) != pixels(paths[1])


@pytest.mark.parametrize("seed", [0, 2**32, 2**63, 2**64 - 1])
def test_every_seed_of_64_bits_is_accepted(run: Run, model: Path, seed: int) -> None:
    (path,) = drawn(run("a", "-m", model, *QUICK, "-s", seed, "-o", "x.png"))
    recipe = read_recipe(path)
    assert recipe is not None and recipe.seed == seed


def test_each_picture_of_a_batch_can_be_drawn_alone(run: Run, model: Path) -> None:
    batch = drawn(run("a", "-m", model, *QUICK, "-s", 10, "-b", 3))
    alone = [drawn(run("a", "-m", model, *QUICK, "-s", seed))[0] for seed in (10, 11, 12)]
    assert [pixels(p) for p in batch] == [pixels(p) for p in alone]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--sampler", "Euler a"),
        ("--sampler", "dpmpp_2m", "--scheduler", "karras", "-n", "bad"),
        ("--sampler", "ddim", "--eta", 0.5, "--scheduler", "trailing"),
        ("--scheduler", "uniform", "--cfg-scale", 1, "--clip-skip", 2),
        ("--dtype", "bfloat16", "-W", 32),
    ],
)
def test_a_picture_can_be_drawn_again_from_itself_alone(
    run: Run, embedded: Path, options: tuple[object, ...]
) -> None:
    prompt = 'a "cat", (red:1.2)\nNegative prompt: no\nSteps: 9, Sampler: x, Seed: 1'
    (path,) = drawn(run(prompt, *QUICK, *options, "-o", "a.png"))
    (again,) = drawn(run("--from", path, "-o", "b.png"))
    assert Path(again).read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_jpeg_and_a_webp_can_be_drawn_again_too(run: Run, embedded: Path, suffix: str) -> None:
    options = ("--dtype", "bfloat16", "--sampler", "Euler a", "-n", "bad")
    (path,) = drawn(run('a "猫"', *QUICK, *options, "-o", f"a{suffix}"))
    with Image.open(path) as picture:
        assert picture.format == {".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    (again,) = drawn(run("--from", path, "-o", f"b{suffix}"))
    assert Path(again).read_bytes() == Path(path).read_bytes()
    (whole,) = drawn(run("--from", path, "-o", "b.png"))
    recipe = read_recipe(path)
    assert recipe is not None
    (first,) = drawn(run('a "猫"', *QUICK, *options, "-s", recipe.seed, "-o", "c.png"))
    assert Path(whole).read_bytes() == Path(first).read_bytes()


def test_options_change_a_replayed_recipe(run: Run, embedded: Path) -> None:
    (path,) = drawn(run("a cat", *QUICK, "-s", 1))
    (changed,) = drawn(run("a dog", "--from", path, "-s", 2, "-b", 1))
    recipe = read_recipe(changed)
    assert recipe is not None
    assert (recipe.prompt, recipe.seed, recipe.steps) == ("a dog", 2, 2)


def test_a_replay_with_another_model_is_refused_or_said(
    run: Run, embedded: Path, other_model: Path
) -> None:
    (path,) = drawn(run("a", "-m", other_model, *QUICK))
    said = run("--from", path)
    assert said.code == 1 and "--model" in said.err
    assert drawn(run("--from", path, "-m", other_model, "-o", "b.png")) == ["b.png"]
    (path,) = drawn(run("a", *QUICK))
    said = run("--from", path, "-m", other_model)
    assert said.code == 0 and "whose hash is" in said.err


def test_a_picture_of_the_web_ui_is_replayed(run: Run, embedded: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    text = "a cat\nNegative prompt: dog\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, "
    info.add_text("parameters", text + "CFG scale: 3, Seed: 7, Size: 16x24, Version: v1.10.1")
    Image.new("RGB", (16, 24)).save("web.png", pnginfo=info)
    (path,) = drawn(run("--from", "web.png"))
    recipe = read_recipe(path)
    assert recipe is not None
    assert (recipe.prompt, recipe.negative_prompt) == ("a cat", "dog")
    assert (recipe.steps, recipe.sampler, recipe.schedule) == (2, "DPM++ 2M", "Karras")
    assert (recipe.cfg_scale, recipe.seed, recipe.width, recipe.height) == (3.0, 7, 16, 24)


@pytest.mark.parametrize("recipe", [None, Recipe(prompt="just words")])
def test_a_picture_without_recipe_is_not_replayed(
    run: Run, embedded: Path, recipe: Recipe | None
) -> None:
    Path("plain.png").write_bytes(encode_png(Image.new("RGB", (8, 8)), recipe))
    said = run("--from", "plain.png")
    assert said.code == 1 and "recipe" in said.err


def test_the_picture_carries_both_texts(run: Run, model: Path) -> None:
    (path,) = drawn(run("a cat", "-m", model, *QUICK, "-s", 5, "--sampler", "euler_a"))
    texts = read_texts(path, ["parameters", "sfumato"])
    recipe = read_recipe(path)
    assert recipe is not None and texts["parameters"] == to_infotext(recipe)
    assert re.fullmatch(
        r"a cat\nSteps: 2, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 5, "
        r"Size: 16x16, Model hash: [0-9a-f]{10}, Model: tiny, RNG: CPU, "
        rf"Version: sfumato {re.escape(__version__)}",
        texts["parameters"],
    )
    assert parse_infotext(texts["parameters"]).seed == 5
    assert (
        recipe.model_hash
        == assets.file_sha256(model / "unet" / "diffusion_pytorch_model.safetensors")[:10]
    )


def test_json_is_one_line_for_each_picture(run: Run, model: Path) -> None:
    lines = drawn(run("a cat", "-m", model, *QUICK, "-b", 2, "-s", 8, "--json"))
    rows = [json.loads(line) for line in lines]
    assert [row["seed"] for row in rows] == [8, 9]
    assert all(Path(row["path"]).is_file() and row["seconds"] >= 0 for row in rows)


def test_prompts_come_from_stdin_one_a_line(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\n\n  \na dog\n"))
    paths = drawn(run("-", "-m", model, *QUICK, "-s", 3))
    recipes = [read_recipe(path) for path in paths]
    assert [r.prompt for r in recipes if r] == ["a cat", "a dog"]
    assert [r.seed for r in recipes if r] == [3, 3]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_sampler_of_the_list_draws(run: Run, model: Path, sampler: object) -> None:
    name = getattr(sampler, "name", "")
    (path,) = drawn(run("a", "-m", model, "--sampler", name, "--steps", 2, "-s", 1))
    recipe = read_recipe(path)
    assert recipe is not None and recipe.sampler == name


@pytest.mark.parametrize(
    "prompt",
    [
        "", "   ", "()", "((((", "[a|[b|", "(x:1.2.3)", "(x:nan)", "word " * 500, "w" * 20_000,
        "a\nb", "👩‍👩‍👧 مرحبا \u202e", "\udcff", "%s $(ls) `x` <script>", "<b:> <lora:",
    ],
)  # fmt: skip
def test_any_text_is_a_prompt(run: Run, model: Path, prompt: str) -> None:
    (path,) = drawn(run("-m", model, *QUICK, "-s", 1, "-p", prompt))
    recipe = read_recipe(path)
    assert recipe is not None and recipe.prompt == prompt.replace("\udcff", "?")


DEFAULTS = {
    "steps": 3,
    "cfg_scale": 2.5,
    "sampler": "Euler",
    "schedule": "Karras",
    "width": 24,
    "height": 32,
    "negative_prompt": "blur",
}


@pytest.fixture
def opinionated(embedded: Path) -> Path:
    (embedded / "generation.json").write_text(json.dumps(DEFAULTS))
    assets.write_manifest(embedded)
    return embedded


def test_a_model_brings_its_own_defaults_and_options_overrule_them(
    run: Run, opinionated: Path
) -> None:
    (path,) = drawn(run("a", "-s", 1))
    recipe = read_recipe(path)
    assert recipe is not None
    assert {key: recipe[key] for key in DEFAULTS} == DEFAULTS
    (plain,) = drawn(run("a", "-s", 1, "-n", "", "--scheduler", "automatic", "--steps", 2))
    recipe = read_recipe(plain)
    assert recipe is not None
    assert (recipe.negative_prompt, recipe.schedule, recipe.steps) == ("", "Automatic", 2)
    (again,) = drawn(run("--from", plain))
    assert pixels(again) == pixels(plain)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"stepz": 3}', '{"steps": "3"}', '{"steps": 0}', '{"cfg_scale": NaN}'],
)
def test_defaults_that_are_wrong_are_an_error(run: Run, opinionated: Path, text: str) -> None:
    (opinionated / "generation.json").write_text(text)
    said = run("a")
    assert said.code == 1 and said.err.count("\n") == 1


def test_a_damaged_embedded_model_is_named_with_its_hash(run: Run, embedded: Path) -> None:
    weights = embedded / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    said = run("a", *QUICK)
    assert said.code == 1 and said.err.count("\n") == 1
    assert "diffusion_pytorch_model.safetensors' is damaged" in said.err
    assert "expected is" in said.err and "Reinstall" in said.err


def test_a_full_disk_is_one_line_and_leaves_nothing(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.cli import pictures

    def full(path: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pictures, "fsync_path", full)
    said = run("a", "-m", model, *QUICK, "-o", "out/a.png")
    assert (said.code, said.out) == (1, "")
    assert "No space left on device" in said.err
    assert os.listdir("out") == []


def test_numbers_that_break_down_are_no_black_picture(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise NumericalError("The UNet's output is NaN.")

    monkeypatch.setattr(drawing, "_draw_one", broken)
    said = run("a", "-m", model)
    assert (said.code, said.out) == (1, "")
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--device", "gpu"), "no device 'gpu'"),
        (("--device", "cuda:77"), "no device 'cuda:77'"),
        (("--dtype", "float8"), "no data type"),
        (("--sampler", "NoSuchScheduler"), "no sampler"),
    ],
)
def test_what_only_the_machine_or_the_model_can_refuse_is_one_line(
    run: Run, model: Path, arguments: tuple[str, str], text: str
) -> None:
    said = run("a", "-m", model, *QUICK, *arguments)
    assert said.code == 2 and text in said.err and said.err.count("\n") == 1


def test_the_bar_is_for_terminals_alone(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run("a", "-m", model, *QUICK)
    assert "%|" not in said.err
    monkeypatch.setattr(drawing, "is_terminal", lambda stream: True)
    said = run("a", "-m", model, *QUICK, "-b", 2)
    assert "1/2: " in said.err and "%|" in said.err


def test_threads_are_set(run: Run, model: Path) -> None:
    before = torch.get_num_threads()
    try:
        drawn(run("a", "-m", model, *QUICK, "-t", 1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def endless(model: Path, tmp_path: Path) -> Iterator[list[object]]:
    """Arguments for a run that never ends by itself, in an empty folder."""
    yield ["a", "-m", model, "--steps", 3, "-b", 100_000, "-o", tmp_path / "p-%05d.png"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_an_interrupted_run_ends_cleanly(
    endless: list[object], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start(*endless)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it draws
        time.sleep(0.05)
        process.send_signal(number)
        err = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert all(re.fullmatch(r"p-\d{5}\.png", name) for name in names), names
    for name in names:
        with Image.open(tmp_path / name) as image:
            image.load()


def test_a_reader_that_leaves_stops_the_run(endless: list[object]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    said = run_process(*endless, stdout=writing)
    os.close(writing)
    assert said.code == 141
    assert "Traceback" not in said.err and "rror" not in said.err


def test_nothing_but_the_output_folder_is_needed(model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": "/nonexistent", "TMPDIR": "/nonexistent", "LC_ALL": "C"}
    target = tmp_path / "ünicode.png"
    said = run_process("ein Bär", "-m", model, *QUICK, "-o", target, env=environment, stdin=None)
    assert said.code == 0, said.err
    assert target.is_file()


def test_closed_streams_do_not_stop_a_picture(model: Path, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m sfumato a -m '{model}' --steps 2 -o a.png <&- >&- 2>&-"
    said = os.system(f"cd '{tmp_path}' && {command}")
    assert said == 0
    assert (tmp_path / "a.png").is_file()


def test_a_closed_stream_is_no_terminal() -> None:
    assert not console.is_terminal(None)
    stream = io.StringIO()
    stream.close()
    assert not console.is_terminal(stream)

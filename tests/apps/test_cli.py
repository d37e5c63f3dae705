"""The command line as people meet it: help, exit statuses, one-line errors, and the documents that quote it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rewarddance.apps.cli import COMMANDS, main, overview
from rewarddance.core.config import load_recipe, parse_config

ROOT = Path(__file__).parents[2]


def run(capsys, *args):
    try:
        status = main(list(args))
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"]])
def test_a_reader_who_leaves_early_is_no_error(args):
    process = subprocess.Popen(
        [sys.executable, "-m", "rewarddance", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


def test_overview_names_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name, capsys):
    status, out, _ = run(capsys, *name.split(), "--help")
    assert status == 0
    assert "rewarddance " + name in out
    assert "Example" in out


def test_help_breaks_no_line_inside_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    _, out, _ = run(capsys, "evaluate", "--help")
    assert "benchmark, Vendi score, diversity, CLIPScore, and LPIPS" in out


def test_help_needs_no_torch():
    code = "import sys; from rewarddance.apps.cli import main; main(['align', '--help'])"
    check = f"try:\n {code}\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("trian",), 2, "did you mean 'train'"),
        (
            ("study", "paradigms", "--out", "x", "--only", "pairwise", "--only", "pointwise"),
            2,
            "--only is given more than",
        ),
        (
            ("train", "--out", "x", "--loop.num-steps", "1", "--loop.num_steps=2"),
            2,
            "--loop.num-steps is given more than",
        ),
        (("sample", "--prompt", "a", "--out", "b", "--num", "0"), 2, "sample: --num 0: needs 1 or more"),
        (("evaluate", "--generator", "tiny", "--every", "0"), 2, "evaluate: --every 0: needs 1 or more"),
        (("score", "--prompt", "a", "--candidate", "b.png", "--tiles", "-3"), 2, "score: --tiles -3: needs 1 or more"),
        (("plan", "--backbone", "tiny-2m", "--gpus", "0"), 2, "plan: --gpus 0: needs 1 or more"),
        (("data", "build", "--out", "x", "--pictures", "1"), 2, "data build: --pictures 1: needs 2 or more"),
        (("data", "build", "--out", "x", "--criterion", "beauty"), 2, "criterion"),
        (("train", "--out", "x", "--freeze-vision", "--lora.vision", "--lora.rank", "2"), 2, "contradict each other"),
        (("align", "--out", "x", "--batch-size", "0"), 2, "align: batch_size: "),
        ((), 2, ""),
        (("train", "--out", "x", "--nonsense", "1"), 2, "Unrecognized options: --nonsense, 1; see rewarddance train"),
        (("train", "--out", "x", "--loop.num-step", "1"), 2, "did you mean --loop.num-steps?"),
        (
            ("train", "--out", "x", "--loop.num-steps", "-1"),
            2,
            "num_steps Input should be greater than or equal to 0; s",
        ),
        (("data", "import"), 2, "missing: PATH, --out PATH; see"),
        (("train", "none.yaml", "--out", "x"), 1, "none.yaml: cannot read the recipe"),
        (("rank", "missing.png", "--prompt", "x"), 1, "missing.png: no such file"),
        (("report", "nowhere"), 1, "nowhere: nothing to report on"),
        (("evaluate", "nowhere"), 1, "nowhere: not a run folder"),
        (("evaluate", "--judge", "tiny", "--guidance", "4.5"), 2, "evaluate --judge: takes no --guidance"),
        (("evaluate", "runs/a", "--generator", "tiny"), 2, "evaluate --generator: takes no runs/a"),
        (("sample", "--prompt", "a", "--out", "b", "--judge", "c"), 2, "--judge chooses among candidates"),
        (("study", "sizes", "--data", "d", "--out", "o", "--sizes", "huge"), 2, "tiny-200m"),
        (("score", "data", "--prompt", "a"), 2, "--prompt cannot be used with a data folder"),
        (("sample", "--prompt", "a", "--out", "b", "--search", "paths"), 2, "--search and --nfe go together"),
        (("sample", "--prompt", "a", "--out", "b", "--ask", "anchor"), 2, "--ask is about a search"),
        (
            ("sample", "--prompt", "a", "--out", "b", "--search", "paths", "--nfe", "9", "--best-of", "2"),
            2,
            "--best-of and --search do not go together",
        ),
        (("sample", "--prompt", "a", "--out", "b", "--search", "path", "--nfe", "9"), 1, "Input tag 'path' found"),
        (("study", "search", "--out", "x", "--only", "path"), 1, "no settings 'path'; known: 'best_of_n', 'paths'"),
        (
            ("score", "--prompt", "a", "--candidate", "b.png", "--out", "c"),
            2,
            "--out cannot be used with one picture",
        ),
        (("rerun", "nowhere", "--out", "x"), 1, "nowhere: not a run folder"),
        (("score",), 2, "--prompt and --candidate"),
        (("align", "--judge", "nowhere", "--out", "x"), 1, "judge 'nowhere': not 'tiny'"),
        (("data", "import", "no.csv", "--format", "csv", "--media-root", ".", "--out", "x"), 1, "no.csv: no such file"),
    ],
)
def test_mistakes_are_one_clear_line(args, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, *args)
    assert found == status
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert err.strip().count("\n") == 0


def test_a_typing_error_in_a_recipe_names_the_nearest_key(capsys, tmp_path):
    (tmp_path / "r.yaml").write_text("optim: {learning_rat: 1}\nparadigmm: x\n")
    status, _, err = run(capsys, "train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run"))
    assert status == 1
    assert "did you mean 'paradigm'" in err


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads(path):
    from rewarddance.align.config import AlignConfig
    from rewarddance.lab.alignment_config import AlignmentStudyConfig
    from rewarddance.reward.composite_config import load_composite_config
    from rewarddance.reward.learned_config import LearnedConfig
    from rewarddance.reward.train_config import RewardConfig
    from rewarddance.search.config import parse_search

    recipe = load_recipe(path)
    if path.stem == "search":
        for name, values in recipe.items():
            parse_search(values, name)
        return
    if "arms" in recipe:
        parse_config(AlignmentStudyConfig, recipe, str(path)).check()
        return
    if "parts" in recipe:
        load_composite_config(path)
        return
    kind = AlignConfig if "generator" in recipe else LearnedConfig if "shape" in recipe else RewardConfig
    parse_config(kind, recipe, str(path))


def test_the_documents_quote_the_real_overview():
    text = (ROOT / "docs" / "cli.md").read_text()
    quoted = re.search(r"```text\n(usage: rewarddance COMMAND.*?)```", text, re.DOTALL)
    assert quoted is not None
    assert quoted[1].strip() == overview().strip()


def test_the_documents_quote_every_commands_help(capsys):
    from rewarddance.apps.docs import render_cli_page

    assert (ROOT / "docs" / "cli.md").read_text() == render_cli_page()

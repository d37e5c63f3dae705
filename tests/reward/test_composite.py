"""Composite rewards: weights, standards, refusals, rules of composition, harmony, novelty, and what must never win."""

import contextlib
import json
import math
import shutil
from dataclasses import dataclass

import pytest
import torch
from test_picture_measures import grey, square
from tiny_clip import tiny_clip

from rewarddance.apps.cli import main
from rewarddance.core.errors import ConfigError, InputError, JudgementError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.data.parquet import RecordTable
from rewarddance.data.schema import hash_of, png_bytes, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.text import normalised
from rewarddance.data.votes import MediaRef, VotedRecord, choice
from rewarddance.jobs.composite import build_parts, fit_composite, load_composite, reference_halves
from rewarddance.jobs.load import find, load_judge, load_single_judge, load_task
from rewarddance.reward.composite import Composite, Standard, fit_standard
from rewarddance.reward.composite_config import CompositeConfig, load_composite_config, normalised_weights
from rewarddance.reward.parts import JudgePart, MeasurePart, PartValues
from rewarddance.vlm.embedders import ClipEmbedder

YAML = """
parts:
  fidelity: {kind: judge, judge: tiny}
  composition: {kind: composition}
  colour_harmony: {kind: colour_harmony}
  novelty: {kind: novelty}
weights: {colour_harmony: 0.1}
"""


def brightness(prompts, media):
    return torch.stack([m.frames.mean() for m in media])


def blueness(prompts, media):
    return torch.stack([m.frames[:, 2].mean() for m in media])


UNIT = Standard(0.0, 1.0, 1.0)


def test_weights_are_those_of_the_parts_that_are_there():
    part = {"kind": "colour_harmony"}
    full = CompositeConfig(parts=dict.fromkeys(("fidelity", "style", "composition", "novelty"), part))
    assert normalised_weights(full) == (
        pytest.approx({"fidelity": 0.4, "style": 0.25, "composition": 0.25, "novelty": 0.1}),
        (),
    )
    some = CompositeConfig(parts={"fidelity": part, "novelty": part})
    assert normalised_weights(some) == (pytest.approx({"fidelity": 0.8, "novelty": 0.2}), ("style", "composition"))
    colour = CompositeConfig(preset="colour", parts={"colour_harmony": part, "composition": part})
    assert normalised_weights(colour)[0] == pytest.approx({"colour_harmony": 0.25 / 0.35, "composition": 0.1 / 0.35})
    own = CompositeConfig(parts={"fidelity": part, "mood": part}, weights={"mood": 1.2})
    assert normalised_weights(own)[0] == pytest.approx({"fidelity": 0.25, "mood": 0.75})


def test_a_wrong_file_is_one_line(tmp_path):
    for text, message in (
        ("parts: {fidelity: {kind: judge}, mood: {kind: judge}}", "parts mood: have no weight"),
        ("parts: {fidelity: {kind: judges}}", "fidelity"),
        ("parts: {fidelity: {kind: judge}}\noptional: [style]", "there is no part style"),
        ("parts: {fidelity: {kind: judge}}\nweights: {fidelity: -1}", "must be 0 or more"),
        ("parts: {fidelity: {kind: judge}}\nweights: {fidelity: 0}", "are 0"),
        ("part: {}", "did you mean 'parts'"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_composite_config(tmp_path / "c.yaml")


def test_the_sum_is_that_of_bounded_standardised_parts():
    standards = {"a": Standard(0.2, 0.1, 0.5), "b": Standard(0.0, 2.0, 1.0)}
    judge = Composite({"a": MeasurePart(brightness), "b": MeasurePart(blueness)}, standards, {"a": 0.75, "b": 0.25})
    assert isinstance(judge, RewardModel)
    bright, dark = grey(0.6), grey(0.1)
    verdict = judge.judge([Comparison("p", bright), Comparison("p", bright, dark), Comparison("p", dark, bright)])

    def bounded(z):
        return 3 * math.tanh(z / 3)

    expected = [(bounded(4.0), bounded(0.3)), (bounded(1.0), bounded(0.5)), (bounded(-1.0), bounded(-0.5))]
    assert verdict.parts["a"].tolist() == pytest.approx([a for a, _ in expected], abs=1e-5)
    assert verdict.margin.tolist() == pytest.approx([0.75 * a + 0.25 * b for a, b in expected], abs=1e-5)
    row = judge.explain([Comparison("p", bright)])[0]
    assert row["R"] == pytest.approx(sum(part["contribution"] for part in row["parts"].values()), abs=1e-6)
    assert row["parts"]["a"]["raw"] == pytest.approx(0.6)


def test_gradients_reach_the_pixels_of_the_answered_items_only():
    pixels = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    judge = Composite({"a": MeasurePart(brightness)}, {"a": UNIT}, {"a": 1.0})
    verdict = judge.judge([Comparison("p", Media(pixels)), Comparison("p", Media(torch.rand(1, 3, 1, 300)))])
    assert list(verdict.refused) == [1]
    verdict.margin[0].backward()
    slope = 1 - math.tanh(0.5 / 3) ** 2
    assert pixels.grad.sum().item() == pytest.approx(slope, rel=1e-4)


@dataclass
class Picky:
    """Refuses dark pictures."""

    def values(self, comparisons):
        values = torch.stack([c.candidate.frames.mean() for c in comparisons])
        refused = {i: "too dark" for i, v in enumerate(values.tolist()) if v < 0.3}
        return PartValues(values.masked_fill(values < 0.3, torch.nan), refused)


def test_an_item_is_refused_where_a_required_part_refuses_it():
    parts = {"a": MeasurePart(brightness), "b": Picky()}
    weights, standards = {"a": 0.6, "b": 0.4}, {"a": UNIT, "b": UNIT}
    comparisons = [Comparison("p", grey(0.2)), Comparison("p", grey(0.8))]
    strict = Composite(parts, standards, weights).judge(comparisons)
    assert strict.refused == {0: "b: too dark"}
    assert strict.margin.isnan().tolist() == [True, False]
    with pytest.raises(JudgementError, match="b: too dark"):
        Composite(parts, standards, weights).judge(comparisons, on_refused="raise")
    lenient = Composite(parts, standards, weights, optional=("b",))
    verdict = lenient.judge(comparisons)
    assert not verdict.refused
    assert verdict.margin[0].item() == pytest.approx(3 * math.tanh(0.2 / 3), abs=1e-6)  # the weight of a alone
    assert verdict.parts["b"].isnan().tolist() == [True, False]
    row = lenient.explain(comparisons)[0]["parts"]
    assert (row["b"]["refused"], row["a"]["weight"]) == ("too dark", 1.0)
    alone = Composite({"b": Picky()}, {"b": UNIT}, {"b": 1.0}, optional=("b",)).judge(comparisons)
    assert alone.refused == {0: "b: too dark"}


def test_the_problem_of_a_comparison_is_that_of_a_required_judge():
    class PairsOnly:
        differentiable = True

        def problem(self, comparison):
            return f"{comparison.criterion}: needs a reference" if comparison.reference is None else None

    parts = {"a": MeasurePart(brightness), "b": JudgePart(PairsOnly(), "mood")}
    weights, standards = {"a": 0.5, "b": 0.5}, {"a": UNIT, "b": UNIT}
    alone, pair = Comparison("p", grey()), Comparison("p", grey(), grey(0.1))
    composite = Composite(parts, standards, weights)
    assert composite.problem(pair) is None
    assert composite.problem(alone) == "b: mood: needs a reference"
    assert Composite(parts, standards, weights, optional=("b",)).problem(alone) is None


def test_measures_of_pictures_refuse_clips():
    clip = Media(torch.full((3, 3, 8, 8), 0.5), 8.0)
    values = MeasurePart(brightness).values([Comparison("p", grey(0.6)), Comparison("p", grey(), clip)])
    assert values.values[0].item() == pytest.approx(0.6)
    assert values.values[1].isnan()
    assert values.refused == {1: "media: a clip of 3 frames; this part measures pictures"}


def test_standards_are_those_of_the_values():
    alone, pairs = torch.arange(10.0), torch.tensor([3.0, -4.0] * 5)
    standard = fit_standard("a", torch.cat([alone, torch.tensor([torch.nan])]), pairs)
    assert (standard.mean, standard.std) == (4.5, pytest.approx(alone.std().item()))
    assert standard.paired_std == pytest.approx(math.sqrt(12.5))
    only_pairs = fit_standard("a", torch.full((9,), torch.nan), pairs)
    assert only_pairs.mean is None
    judge = Composite({"a": MeasurePart(brightness)}, {"a": only_pairs}, {"a": 1.0})
    pixels = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    verdict = judge.judge([Comparison("p", Media(pixels)), Comparison("p", Media(pixels), grey(0.1))])
    assert "pictures alone or pairs" in verdict.refused[0]
    verdict.margin[1].backward()  # the refused item leaves no NaN behind
    z = 0.4 / standard.paired_std
    assert pixels.grad.sum().item() == pytest.approx((1 - math.tanh(z / 3) ** 2) / standard.paired_std, rel=1e-3)
    with pytest.raises(InputError, match="one value for all"):
        fit_standard("a", torch.ones(9), pairs)
    with pytest.raises(InputError, match="answered 2 pictures"):
        fit_standard("a", torch.ones(2), pairs[:3])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, data_folder):
    file = tmp_path_factory.mktemp("composite") / "composite.yaml"
    file.write_text(YAML)
    return file, fit_composite(file, data_folder)


@pytest.mark.parametrize("style", ["", "  style: {kind: clip}\n"])
def test_noise_blanks_and_copies_never_win_against_good_pictures(tmp_path, data_folder, style):
    file = tmp_path / "composite.yaml"
    file.write_text(YAML.replace("weights:", style + "weights:"))
    fit_composite(file, data_folder)
    judge, task = load_judge(file), load_task("embedded")
    assert isinstance(judge, Composite)
    prompts = [p.text for p in task.benchmark()[::12]]
    pictures = [Media(x[None]) for x in task.reference_pictures(prompts, 1, 0)]
    index = list(RecordTable.open(data_folder / "train.parquet"))[::2]  # what the index of novelty holds
    copies = [r.media[0] for r in index]
    rng = torch.Generator().manual_seed(0)
    bad = {
        "noise": [Media(torch.rand(1, 3, 48, 48, generator=rng)) for _ in prompts],
        "blank": [grey(v) for v in (0.08, 0.55, 0.96)],
        "copy": copies,
    }
    good = judge.judge([Comparison(p, x) for p, x in zip(prompts, pictures, strict=True)]).margin
    for name, others in bad.items():
        rivals = [others[i % len(others)] for i in range(len(prompts))]
        alone = judge.judge([Comparison(p, x) for p, x in zip(prompts, rivals, strict=True)]).margin
        paired = judge.judge([Comparison(p, x, y) for p, x, y in zip(prompts, pictures, rivals, strict=True)]).margin
        assert (good > alone).all(), (name, (good - alone).min())
        assert (paired > 0).all(), (name, paired.min())


def test_the_fit_is_written_and_must_be_of_the_same_parts(fitted, data_folder, tmp_path):
    file, facts = fitted
    folder = file.with_name("composite.fitted")
    assert sorted(p.name for p in folder.iterdir()) == ["novelty.safetensors", "standards.json"]
    assert facts["missing"] == ["style"]
    assert sum(facts["weights"].values()) == pytest.approx(1)
    judge = load_judge(file)
    records = list(RecordTable.open(data_folder / "train.parquet"))[1::2]
    comparisons = [Comparison(r.prompt, m) for r in records for m in r.media]
    margins = load_single_judge("tiny").judge(comparisons).margin.detach()
    assert facts["standards"]["fidelity"]["mean"] == pytest.approx(margins.mean().item(), abs=1e-3)
    assert facts["standards"]["fidelity"]["std"] == pytest.approx(margins.std().item(), rel=1e-3)
    z = judge.judge(comparisons).parts["composition"]
    assert abs(z.mean().item()) < 0.3  # of standardised values, after the bound
    written = json.loads((folder / "standards.json").read_text())
    del written["config"]["novelty"]["reference"]  # an earlier version did not have this key
    (folder / "standards.json").write_text(json.dumps(written))
    assert load_judge(file).parts.keys() == judge.parts.keys()
    (tmp_path / "c.yaml").write_text(YAML)
    with pytest.raises(ConfigError, match="not fitted yet"):
        load_composite(tmp_path / "c.yaml")
    file.write_text(YAML.replace("kind: novelty", "kind: novelty, neighbours: 3"))
    with pytest.raises(ConfigError, match="novelty changed since the fit"):
        load_judge(file)
    file.write_text(YAML)
    with pytest.raises(ConfigError, match="a composite; this takes the judges"):
        load_single_judge(file)


def test_score_explains_the_parts(fitted, tmp_path, capsys):
    square(16, 16).to_pil().save(tmp_path / "a.png")
    arguments = ["--judge", str(fitted[0]), "--candidate", str(tmp_path / "a.png")]
    prompt = "flat drawing of a red square on white"
    assert main(["score", *arguments, "--prompt", prompt, "--explain"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["parts"].keys() == {"fidelity", "composition", "colour_harmony", "novelty"}
    assert content["margin"] == pytest.approx(sum(p["contribution"] for p in content["parts"].values()), abs=1e-5)
    assert content["missing"] == ["style"]


def picture_row(name, prompt, levels, criteria):
    """A row with one vote by each criterion on its first two pictures."""
    media = []
    for level in levels:
        data = png_bytes(grey(level / 255, 8))
        media.append(MediaRef(path=f"{level}.png", sha256=hash_of(data), data=data))
    return row_of_votes(VotedRecord(name, prompt, tuple(media), tuple(choice(1.0, criterion=c) for c in criteria)))


def test_the_halves_of_the_reference_set_share_no_prompt_and_no_picture(tmp_path):
    rows = [picture_row(f"r{i}", f"prompt {i}", (10 * i, 10 * i + 1), ("overall", "style")) for i in range(12)]
    rows.append(picture_row("again", "prompt 1", (10, 11), ("overall",)))  # another vote on the same pictures
    rows.append(picture_row("more", "Prompt 2!", (201, 202), ("overall",)))  # another row of one prompt
    rows.append(picture_row("shared", "prompt 12", (30, 203), ("overall",)))  # a picture of prompt 3
    write_rows(rows, tmp_path / "train.parquet")
    halves = reference_halves(RecordTable.open(tmp_path / "train.parquet"), 400)
    prompts = [{normalised(r.prompt) for r in half} for half in halves]
    pictures = [{m.key for r in half for m in r.media} for half in halves]
    assert not prompts[0] & prompts[1]
    assert not pictures[0] & pictures[1]
    assert [len(p) for p in prompts] == [6, 7]
    assert sorted(len(half) for half in halves) == [7, 7]  # each row once, although it has two criteria
    few = reference_halves(RecordTable.open(tmp_path / "train.parquet"), 7)
    assert sum(map(len, few)) == 7
    write_rows(rows[:1] * 4, tmp_path / "one.parquet")
    with pytest.raises(InputError, match="1 records are too few"):
        reference_halves(RecordTable.open(tmp_path / "one.parquet"), 400)
    rows = [picture_row(f"r{i}", "one prompt", (10 * i, 10 * i + 1), ("overall",)) for i in range(5)]
    write_rows(rows, tmp_path / "prompt.parquet")
    with pytest.raises(InputError, match="all records share prompts or pictures"):
        reference_halves(RecordTable.open(tmp_path / "prompt.parquet"), 400)


@pytest.fixture(scope="module")
def own_files(tmp_path_factory, data_folder):
    """A composite of copies of the shipped judge and VLM, and of a CLIP with a gallery."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(find("tiny", "judge"), folder / "judge")
    shutil.copytree(find("tiny", "vlm"), folder / "vlm")
    tiny_clip(folder / "clip")
    (folder / "gallery").mkdir()
    for i in range(2):
        square(16 + i, 16).to_pil().save(folder / "gallery" / f"{i}.png")
    (folder / "own.yaml").write_text(
        f"""
parts:
  fidelity: {{kind: judge, judge: {folder / "judge"}}}
  style: {{kind: clip, model: {folder / "clip"}, gallery: {folder / "gallery"}}}
  novelty: {{kind: novelty, features: {folder / "vlm"}}}
"""
    )
    fit_composite(folder / "own.yaml", data_folder)
    return folder


@contextlib.contextmanager
def changed(file, content):
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def with_other_weights(file):
    """The content of a safetensors file with its last bytes turned."""
    content = file.read_bytes()
    return content[:-64] + bytes(255 - b for b in content[-64:])


def test_files_of_a_part_that_changed_since_the_fit_are_an_error(own_files):
    file = own_files / "own.yaml"
    assert isinstance(load_composite(file), Composite)
    for name, part in {"judge": "fidelity", "clip": "style", "vlm": "novelty"}.items():
        weights = own_files / name / "model.safetensors"
        message = f"the files of {part} changed since the fit"
        with changed(weights, with_other_weights(weights)), pytest.raises(ConfigError, match=message):
            load_composite(file)
    spec = own_files / "judge" / "judge.json"
    with changed(spec, spec.read_bytes() + b" "), pytest.raises(ConfigError, match="the files of fidelity changed"):
        load_composite(file)
    first, second = (own_files / "gallery" / f"{i}.png" for i in range(2))
    with changed(second, first.read_bytes()), pytest.raises(ConfigError, match="the files of style changed"):
        load_composite(file)
    assert isinstance(load_composite(file), Composite)


def test_a_gallery_holds_pictures_only(own_files):
    frames = [square(16 + i, 16).to_pil() for i in range(3)]
    frames[0].save(own_files / "gallery" / "z.gif", save_all=True, append_images=frames[1:], duration=100)
    config = load_composite_config(own_files / "own.yaml")
    with pytest.raises(InputError, match=r"z\.gif: an animation of 3 frames, not a picture"):
        build_parts(CompositeConfig(parts={"style": config.parts["style"]}), {})
    (own_files / "gallery" / "z.gif").unlink()


def test_galleries_and_references_are_sets_with_styles(own_files, data_folder, tmp_path):
    for style, shift in (("Realism", 8), ("Cubism", 20)):
        (tmp_path / "wikiart" / style).mkdir(parents=True)
        for i in range(6):
            square(shift + i, 16).to_pil().save(tmp_path / "wikiart" / style / f"someone_picture-{i}.png")
    source = f"{tmp_path / 'wikiart'}, style: Cubism"
    file = tmp_path / "sets.yaml"
    file.write_text(
        f"""
preset: equal
parts:
  style: {{kind: clip, model: {own_files / "clip"}, gallery: {source}}}
  novelty: {{kind: novelty, features: {own_files / "clip"}, neighbours: 1, reference: {source}}}
"""
    )
    assert fit_composite(file, data_folder)["num_pictures"] > 0
    parts = load_composite(file).parts
    squares = [square(20, 16), square(8, 16)]
    values = {n: p.values([Comparison("p", m) for m in squares]).values for n, p in parts.items()}
    clip = ClipEmbedder.load(own_files / "clip")
    gallery, vectors = clip([square(20 + i, 16) for i in range(6)]), clip(squares)
    assert torch.allclose(values["style"], (vectors @ gallery.T).mean(1), atol=1e-5)
    nearest = (vectors[:, None] - gallery[None]).norm(dim=2).amin(1)
    assert torch.allclose(values["novelty"], nearest, atol=1e-3)
    assert nearest[0] < 1e-6 < 1e-2 < nearest[1]
    file.write_text(file.read_text().replace("Cubism", "Fauvism"))
    with pytest.raises(ConfigError, match=r"part style: no pictures in .*wikiart of style 'Fauvism'"):
        build_parts(load_composite_config(file), {})

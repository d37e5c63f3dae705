"""The words of a saved judge are its own: edits of the code's word lists change no dialog and no score of it."""

import json
import shutil

import pytest
import torch
import yaml

from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison
from rewarddance.jobs.load import ASSETS
from rewarddance.reward import wording
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.judge import new_judge
from rewarddance.reward.saved import load_judge_folder, read_spec, save_judge, write_spec
from rewarddance.reward.wording import load_wording, spellings

OLD = yaml.safe_load((wording.FOLDER / "embedded.yaml").read_text())


@pytest.fixture
def edit_words(tmp_path, monkeypatch):
    """Put other word lists in the place of the code's; every sentence, every request and the order are new."""
    folder = shutil.copytree(wording.FOLDER, tmp_path / "wordings")

    def edit():
        for path in folder.glob("*.yaml"):
            words = yaml.safe_load(path.read_text())
            sentences = {name: f"now {text}" for name, text in reversed(words["criteria"].items())}
            words["criteria"] = {"glamour": "prefer the shiny picture.", **sentences}
            words["pairwise"] = words["pairwise"].replace("better", "finer")
            words["pointwise"] = words["pointwise"].replace("good", "fine")
            words["picture"] = "new " + words["picture"]
            words["request"] = "say {yes} or {no}."
            words["yes"], words["no"] = ["good"], ["bad"]
            path.write_text(yaml.safe_dump(words, sort_keys=False))
        monkeypatch.setattr(wording, "FOLDER", folder)
        load_wording.cache_clear()

    yield edit
    load_wording.cache_clear()


def texts(context, comparison):
    return [p for p in context.render(comparison) if isinstance(p, str)]


def questions(pictures):
    a, b, c = pictures[:3]
    return [Comparison("a red circle", a, b, "style"), Comparison("two stars", b, c, "fidelity")]


def loaded(folder):
    judge = load_judge_folder(folder, precision="fp32")
    if hasattr(judge.single, "strict"):
        judge.single.strict = False  # a random VLM answers with any word
    return judge


@pytest.mark.parametrize("paradigm", ["generative_pairwise", "generative_pointwise", "bradley_terry", "regression"])
def test_a_saved_judge_is_asked_and_answers_as_before(paradigm, backbone, pictures, edit_words, tmp_path):
    judge = new_judge(JudgeSpec(paradigm=paradigm, context=Context()), backbone)
    if paradigm in ("bradley_terry", "regression"):
        torch.nn.init.normal_(judge.single.head.weight, std=0.5)
    training_questions = questions(pictures)
    before, dialogs = (
        judge.judge(training_questions).margin.detach(),
        [texts(judge.spec.context, c) for c in training_questions],
    )
    save_judge(judge, tmp_path / "judge")
    edit_words()
    assert texts(Context(), training_questions[0]) != dialogs[0]  # a new judge is asked in the new words
    again = loaded(tmp_path / "judge")
    assert [texts(again.single.context, c) for c in training_questions] == dialogs
    assert dialogs[0][0].startswith("instruction: prefer the picture that follows the style of the prompt.\n")
    torch.testing.assert_close(again.judge(training_questions).margin, before, atol=1e-5, rtol=0)
    assert before.abs().min() > 0
    if paradigm.startswith("generative"):
        assert again.single.words == [("yes",), ("no",)]


def test_a_criterion_that_the_code_learnt_later_is_unknown_to_a_saved_judge(backbone, pictures, edit_words, tmp_path):
    save_judge(new_judge(JudgeSpec(context=Context()), backbone), tmp_path)
    edit_words()
    new = Comparison("a red circle", *pictures[:2], "glamour")
    assert Context().problem(new) is None
    known = ", ".join(OLD["criteria"])
    verdict = loaded(tmp_path).judge([new, questions(pictures)[0]])
    assert list(verdict.refused) == [0]
    assert f"no instruction for criterion 'glamour'; known: {known}" in verdict.refused[0]


def test_columns_of_a_head_keep_their_names_and_order(backbone, pictures, edit_words, tmp_path):
    judge = new_judge(JudgeSpec(paradigm="regression", context=Context()), backbone)
    with torch.no_grad():
        judge.single.head.bias.copy_(torch.arange(6.0))
    save_judge(judge, tmp_path)
    edit_words()
    names = tuple(OLD["criteria"])
    assert json.loads((tmp_path / "judge.json").read_text())["columns"] == list(names)
    again = loaded(tmp_path)
    assert again.single.columns == names
    alone = [Comparison("a red circle", pictures[0], None, name) for name in names]
    assert again.judge(alone).margin.tolist() == pytest.approx(range(6), abs=1e-5)
    fresh = new_judge(JudgeSpec(paradigm="regression", context=Context()), backbone)
    assert fresh.single.columns == ("glamour", *reversed(names))


def test_a_judge_that_is_loaded_and_saved_again_keeps_its_words(backbone, pictures, edit_words, tmp_path):
    """Further training saves what it has loaded."""
    first = new_judge(JudgeSpec(context=Context(instructions={"style": "prefer blue."}, yes="good")), backbone)
    save_judge(first, tmp_path)
    content = (tmp_path / "judge.json").read_text()
    edit_words()
    for _ in range(2):
        again = loaded(tmp_path)
        write_spec(again, tmp_path)
        assert json.loads((tmp_path / "judge.json").read_text())["context"] == json.loads(content)["context"]
    assert "prefer blue." in texts(again.single.context, questions(pictures)[0])[0]
    assert again.single.words == [spellings("good"), ("no",)]


def test_a_file_of_words_is_not_needed_once_the_judge_is_saved(backbone, pictures, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**OLD, "opening": "{instruction}look: {prompt}\n", "yes": ["good"]}))
    save_judge(new_judge(JudgeSpec(context=Context(template=str(own))), backbone), tmp_path / "judge")
    own.unlink()
    load_wording.cache_clear()
    context = loaded(tmp_path / "judge").single.context
    assert texts(context, questions(pictures)[0])[0] == (
        "instruction: prefer the picture that follows the style of the prompt.\nlook: a red circle\nimage 1: "
    )
    assert context.words.yes == ("good",)
    with pytest.raises(ConfigError, match=r"known are embedded, embedded-roles, rewarddance, or a YAML file"):
        Context(template=str(own)).words  # noqa: B018


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pairwise": "is {first} better?"},
            r"pairwise: no slot \{first\}; known: candidate, prompt, reference, request",
        ),
        ({"opening": "look"}, r"opening: the slot \{prompt\} is missing, and pairwise does not have it either"),
        (
            {"opening": "look", "pairwise": "{prompt}: is {candidate} better?", "pointwise": "{prompt}: good?"},
            "and listwise does not have it either",
        ),
        ({"picture": "see {number}"}, r"picture: the slot \{picture\} is missing"),
        ({"instruction": "be kind"}, r"instruction: the slot \{sentence\} is missing"),
        ({"yes": []}, "yes: tuple should have at least 1 item"),
        ({"requst": "a"}, "unknown key 'requst'; did you mean 'request'"),
    ],
)
def test_words_of_your_own_that_cannot_be_asked_name_the_slot(change, message, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**OLD, **change}))
    with pytest.raises(ConfigError, match=message):
        load_wording(str(own))


def test_the_prompt_may_stand_after_the_pictures(pictures, tmp_path):
    own, prompt_line = tmp_path / "own.yaml", "prompt: {prompt}\n"
    changes = {"opening": "{instruction}", **{k: prompt_line + OLD[k] for k in ("pairwise", "pointwise", "listwise")}}
    own.write_text(yaml.safe_dump({**OLD, **changes}))
    *before, question = texts(Context(template=str(own)), questions(pictures)[0])
    assert not any("a red circle" in text for text in before)
    assert question == f"\nprompt: a red circle\n{OLD['pairwise']}".format(candidate=2)


FORMAT_0 = {
    "paradigm": "generative_pairwise",
    "context": {
        "instruction": True,
        "instructions": {},
        "yes": "yes",
        "no": "no",
        "layout": "strict",
        "names": "numbers",
        "reference": "random",
        "cot": "none",
        "samples": 4,
        "max_reason_tokens": 64,
        "permutations": 2,
        "max_pictures": 8,
    },
    "precision": "bf16",
    "temperature": 1.0,
    "tiles": 1,
    "criteria": ["fidelity", "overall"],
    "trained": True,
}
"""`judge.json` of the judge that was shipped before judges kept their words."""


def old_format(vlm_folder, folder, **changes):
    """A folder as it was written before `judge.json` had a format and a wording."""
    shutil.copytree(vlm_folder, folder)
    content = FORMAT_0
    context = content["context"] | changes.pop("context", {})
    (folder / "judge.json").write_text(json.dumps(content | {"context": context} | changes))
    return folder


def test_the_shipped_judge_is_asked_in_the_words_it_was_trained_in(pictures):
    spec = read_spec(ASSETS / "judge-tiny")
    dialog = spec.context.render(Comparison("a red circle", pictures[1], pictures[0], "fidelity"))
    opening = (
        "instruction: prefer the picture that shows what the prompt asks for.\nanswer yes or no.\n"
        "prompt: a red circle\nimage 1: "
    )
    assert dialog == (opening, pictures[0], "\nimage 2: ", pictures[1], "\nquestion: is image 2 the better one?")
    assert (spec.context.words.yes, spec.context.words.no) == (("yes",), ("no",))
    assert spec.criteria == ("fidelity", "overall")
    assert (spec.format, spec.trained, spec.columns) == (1, True, ())
    assert spec.pointwise


def test_format_0_judges_keep_their_names_words_and_sentences(vlm_folder, pictures, tmp_path):
    changes = {"names": "roles", "yes": "good", "no": "bad", "instructions": {"style": "prefer blue."}}
    judge = loaded(old_format(vlm_folder, tmp_path / "judge", context=changes))
    dialog = judge.single.context.render(Comparison("a red circle", pictures[1], pictures[0], "style"))
    opening = "instruction: prefer blue.\nprompt: a red circle\nreference: "
    question = "\nquestion: is the candidate better than the reference? answer good or bad."
    assert dialog == (opening, pictures[0], "\ncandidate: ", pictures[1], question)
    assert judge.single.words == [("good",), ("bad",)]


def test_format_0_heads_have_the_columns_of_their_time(vlm_folder, pictures, tmp_path):
    from safetensors.torch import save_file

    folder = old_format(vlm_folder, tmp_path / "ratings", paradigm="regression", criteria=[])
    save_file({"weight": torch.zeros(6, 64), "bias": torch.arange(6.0)}, folder / "head.safetensors")
    judge = loaded(folder)
    assert judge.single.columns == tuple(OLD["criteria"])
    alone = [Comparison("a red circle", pictures[0], None, name) for name in OLD["criteria"]]
    assert judge.judge(alone).margin.tolist() == pytest.approx(range(6), abs=1e-5)
    ties = old_format(vlm_folder, tmp_path / "ties", paradigm="bradley_terry_ties")
    save_file({"weight": torch.zeros(1, 64), "bias": torch.zeros(1)}, ties / "head.safetensors")
    assert loaded(ties).single.tie_strength.item() == pytest.approx(5.0)  # it was fixed, and not saved


def test_a_format_of_a_later_version_is_refused(vlm_folder, tmp_path):
    folder = shutil.copytree(vlm_folder, tmp_path / "judge")
    (folder / "judge.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(RunError, match="format 2; this version reads up to 1, install a newer rewarddance"):
        load_judge_folder(folder)


def test_old_words_survive_edits_of_other_lists_but_are_read_from_their_own(vlm_folder, pictures, tmp_path):
    """A folder of format 0 that is saved again has its words in it from then on."""
    folder = old_format(vlm_folder, tmp_path / "judge")
    judge = loaded(folder)
    write_spec(judge, folder)
    content = json.loads((folder / "judge.json").read_text())
    assert content["format"] == 1
    assert content["context"]["wording"]["criteria"] == OLD["criteria"]
    same = Comparison("p", Media(pictures[0].frames), pictures[1], "fidelity")
    assert texts(loaded(folder).single.context, same) == texts(judge.single.context, same)


def test_a_public_vlm_is_asked_in_the_words_for_public_vlms(vlm_folder, pictures, monkeypatch):
    """A folder without `judge.json` takes the set `rewarddance`, and "Yes" counts for yes as "yes" does."""
    assert not (vlm_folder / "judge.json").exists()
    words = yaml.safe_load((wording.FOLDER / "rewarddance.yaml").read_text())
    judge = load_judge_folder(vlm_folder, precision="fp32")
    assert not judge.spec.trained
    sentence = words["criteria"]["fidelity"]
    asked = Comparison("a cat", pictures[0], pictures[1], "fidelity")
    assert texts(judge.single.context, asked) == [
        f"You are an expert judge of generated images. Criterion: {sentence}\n"
        "Answer with one word, yes or no.\nPrompt: a cat\nImage 1: ",
        "\nImage 2: ",
        "\nQuestion: by this criterion, is image 2 better than the other image for the prompt?",
    ]
    assert judge.single.words == [("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No")]
    backbone = judge.engine.backbone
    shares = {" yes": 0.4, "yes": 0.1, " no": 0.05, "no": 0.2}
    p = torch.full((len(backbone.tokenizer),), 0.25 / (len(backbone.tokenizer) - len(shares)))
    for word, share in shares.items():
        (token,) = backbone.tokenizer(word, add_special_tokens=False)["input_ids"]
        p[token] = share
    monkeypatch.setattr(type(backbone), "logits", lambda self, hidden: p.log().expand(len(hidden), -1))
    verdict = judge.single.judge([asked])
    assert verdict.reward.item() == pytest.approx(0.5 / 0.75, abs=0.01)  # of "yes" alone it is one third
    assert verdict.answer_mass.item() == pytest.approx(0.75, abs=0.01)
    assert verdict.refused == {}

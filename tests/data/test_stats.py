"""Figures of a data folder against values known by hand, splits, and the choice of pairs to label."""

import numpy as np
import pytest
from support import layouts

from rewarddance.core.errors import InputError
from rewarddance.core.statistics import share
from rewarddance.core.streams import stream
from rewarddance.data.acquire import disagreement, k_centre, select, spread, uncertainty
from rewarddance.data.agreement import elo_ratings, krippendorff
from rewarddance.data.folder import describe_folder
from rewarddance.data.parquet import voted_records
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.splits import fold_of, hold_out, split_data
from rewarddance.data.stats import data_stats
from rewarddance.data.text import normalised
from rewarddance.data.votes import MediaRef, VotedRecord, choice
from rewarddance.world.raters import Rater

CODERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
"""Krippendorff's example of four observers and twelve units (Computing Krippendorff's alpha-reliability, 2011, C)."""


def units(table):
    return [[float(v) for v in column if v is not None] for column in zip(*table, strict=True)]


def test_alpha_of_the_published_example():
    nominal = krippendorff(units(CODERS))
    assert (round(nominal.alpha, 3), nominal.num_units, nominal.num_values) == (0.743, 11, 40)
    assert round(krippendorff(units(CODERS), "interval").alpha, 3) == 0.849
    assert nominal.low < nominal.alpha < nominal.high
    assert krippendorff([[1.0], [0.0]]).alpha is None
    assert krippendorff([[1.0, 1.0], [1.0, 1.0]]).alpha is None
    assert krippendorff([[1.0, 1.0], [0.0, 0.0]]).alpha == 1.0


def test_alpha_of_coin_flips_is_near_nought_and_its_interval_covers_it():
    flips = np.random.default_rng(0).integers(0, 2, (2000, 3)).astype(float).tolist()
    agreement = krippendorff(flips)
    assert abs(agreement.alpha) < 0.05
    assert agreement.low < 0 < agreement.high


def test_the_interval_does_not_depend_on_the_size_of_the_blocks_of_draws(monkeypatch):
    votes = np.random.default_rng(0).integers(0, 3, (50, 4)).astype(float).tolist()
    whole = krippendorff(votes, "interval")
    monkeypatch.setattr("rewarddance.data.agreement.BLOCK", 7 * 50)  # 57 blocks of 7 draws, and one draw
    blocks = krippendorff(votes, "interval")
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_bradley_terry_gives_the_odds_of_two_systems():
    ratings = elo_ratings({("a", "b"): 300.0, ("b", "a"): 100.0}, prior=0.0)
    assert ratings["a"] - ratings["b"] == pytest.approx(400 * np.log10(3), abs=1e-6)
    chain = elo_ratings({("a", "b"): 9.0, ("b", "a"): 1.0, ("b", "c"): 9.0, ("c", "b"): 1.0}, prior=0.0)
    assert list(chain) == ["a", "b", "c"]
    assert chain["a"] - chain["c"] == pytest.approx(2 * 400 * np.log10(9), abs=1e-3)
    unbeaten = elo_ratings({("a", "b"): 3.0})  # half a win for each side is added
    assert unbeaten["a"] - unbeaten["b"] == pytest.approx(400 * np.log10(3.5 / 0.5), abs=1e-6)


def test_prompts_are_compared_without_case_and_punctuation():
    assert normalised("A red\tCircle!") == normalised("a  red circle") == "a red circle"
    assert normalised("caf\u00e9") == normalised("cafe\u0301")


def ref(seed, model=None):
    content = layouts.png(seed)
    return MediaRef(path=f"{seed}.png", sha256=hash_of(content), model=model, data=content)


def pair(name, prompt, a, b, *votes, models=(None, None), **facts):
    return VotedRecord(name, prompt, (ref(a, models[0]), ref(b, models[1])), votes, **facts)


def bmp(seed):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(layouts.png(seed))).save(buffer, "BMP")
    return MediaRef(path=f"{seed}.bmp", sha256=hash_of(buffer.getvalue()), data=buffer.getvalue())


@pytest.fixture
def folder(tmp_path):
    train = [
        pair("1", "a cat", 0, 1, choice(1.0, annotator="x", shown=(0, 1), seconds=2.0), choice(1.0, annotator="y")),
        pair("2", "A cat.", 1, 0, choice(1.0, annotator="z", shown=(0, 1)), choice(0.0, annotator="x")),
        pair("3", "a dog", 2, 3, choice(0.5, annotator="x", both_bad=True), choice(0.5, annotator="y")),
        pair("4", "a dog", 4, 5, choice(0.0, annotator="x", shown=(0, 1)), models=("m1", "m2")),
        VotedRecord("5", "a dog", (bmp(4), ref(6)), (choice(0.25),)),
    ]
    held = [pair("6", "A CAT", 7, 8, choice(1.0)), pair("7", "a bird", 9, 0, choice(1.0)), pair("8", "x", 10, 11)]
    write_rows(map(row_of_votes, train), tmp_path / "train.parquet")
    write_rows(map(row_of_votes, held), tmp_path / "id.parquet")
    return tmp_path


def test_statistics_of_a_small_folder(folder):
    report = data_stats(folder)
    train = report["splits"]["train"]
    assert train["labels"] == {"first": 3, "second": 2, "both bad": 1, "tie": 1, "soft": 1}
    assert train["shown_first_preferred"]["num"] == 3
    assert train["shown_first_preferred"]["share"] == pytest.approx(2 / 3)
    # x, y and z on one pair of two records: x votes twice (equal), z the other way; x and y agree on a tie
    assert train["contradictions"] == 1
    assert train["repeated_by_one_annotator"]["share"] == 1.0
    agreement = train["agreement_on_choices"]["overall"]
    assert (agreement["num_units"], agreement["num_values"]) == (2, 5)
    assert agreement["alpha"] == pytest.approx(krippendorff([[1.0, 1.0, 0.0], [0.5, 0.5]]).alpha)
    assert train["annotators"]["x"]["votes"] == 4
    assert train["annotators"]["x"]["agrees_with_others"] == share(2, 3)
    assert train["annotators"]["x"]["median_seconds"] == 2.0
    assert train["systems"]["m2"] > train["systems"]["m1"]
    assert train["duplicates"] == {
        "pictures": 7,
        "pictures_in_several_records": 3,
        "pictures_stored_as_several_files": 1,
        "records_with_equal_candidates": 0,
        "prompts": 3,
        "prompts_that_differ_in_case_or_punctuation_alone": 1,
    }
    leaked = report["leakage"]["train and id"]
    assert leaked == {
        "shared_prompts": 1, "shared_pictures": 1, "records_concerned": 2, "records": 3, "examples": ["a cat"],
    }  # fmt: skip
    by_file = data_stats(folder, pixels=False)["splits"]["train"]["duplicates"]
    assert (by_file["pictures"], by_file["pictures_in_several_records"]) == (8, 2)


def many(tmp_path, num=60):
    rng = np.random.default_rng(0)
    records = []
    for i in range(num):
        models = rng.permutation(["m1", "m2", "m3", "m4"])[:2]
        votes = [choice(1.0, annotator=str(a)) for a in rng.permutation(6)[:2]]
        facts = {"groups": {"style": ("flat", "oil", "ink")[i % 3]}, "models": tuple(map(str, models))}
        records.append(pair(str(i), f"Prompt {i // 3}" + "." * (i % 2), 0, 1, *votes, **facts))
    write_rows(map(row_of_votes, records), tmp_path / "train.parquet")
    return records


def read(path):
    return list(voted_records(path, pictures=False))


def test_a_split_by_prompt_shares_no_prompt(tmp_path):
    records = many(tmp_path)
    made = split_data(tmp_path, tmp_path / "out", share=0.2)
    train, held = read(tmp_path / "out" / "train.parquet"), read(tmp_path / "out" / "id.parquet")
    assert (len(train), len(held)) == (made["train"], made["id"]) == (48, 12)
    assert {r.record_id for r in train} | {r.record_id for r in held} == {r.record_id for r in records}
    assert not {normalised(r.prompt) for r in train} & {normalised(r.prompt) for r in held}
    assert data_stats(tmp_path / "out")["leakage"]["train and id"]["shared_prompts"] == 0
    again = split_data(tmp_path, tmp_path / "again", share=0.2)
    assert again == made
    assert split_data(tmp_path, tmp_path / "other", share=0.2, seed=1) != made


def test_splits_by_style_model_and_annotator(tmp_path):
    many(tmp_path)
    split_data(tmp_path, tmp_path / "s", "style", share=0.1)
    assert len({r.groups["style"] for r in read(tmp_path / "s" / "ood.parquet")}) == 1
    assert len({r.groups["style"] for r in read(tmp_path / "s" / "train.parquet")}) == 2
    split_data(tmp_path, tmp_path / "m", "model", held_out=["m2"])
    assert all("m2" in {m.model for m in r.media} for r in read(tmp_path / "m" / "ood.parquet"))
    assert all("m2" not in {m.model for m in r.media} for r in read(tmp_path / "m" / "train.parquet"))
    split_data(tmp_path, tmp_path / "a", "annotator", held_out=["3"])
    assert {v.annotator for r in read(tmp_path / "a" / "ood.parquet") for v in r.votes} == {"3"}
    kept = [v.annotator for r in read(tmp_path / "a" / "train.parquet") for v in r.votes]
    assert (len(set(kept)), "3" in kept) == (5, False)
    with pytest.raises(InputError, match="'m9': no such model"):
        split_data(tmp_path, tmp_path / "x", "model", held_out=["m9"])
    with pytest.raises(InputError, match="cannot split by category"):
        split_data(tmp_path, tmp_path / "x", "category")
    with pytest.raises(InputError, match="is the folder that is split"):
        split_data(tmp_path, tmp_path)


def test_folds_hold_every_record_out_once(tmp_path):
    records = many(tmp_path)
    split_data(tmp_path, tmp_path / "folds", folds=4)
    held = [r.record_id for k in range(4) for r in read(tmp_path / "folds" / f"fold-{k + 1}" / "id.parquet")]
    assert sorted(held) == sorted(r.record_id for r in records)
    sizes = {"a": 10, "b": 7, "c": 4, "d": 3}
    folds = fold_of(sizes, 2, 0)
    assert sorted(sum(sizes[k] for k in sizes if folds[k] == f) for f in (0, 1)) == [11, 13]
    with pytest.raises(InputError, match="5 folds"):
        fold_of(sizes, 5, 0)


def test_some_keys_are_held_out_and_never_all():
    assert len(hold_out([("a",), ("b",)], 0.9, 0)) == 1
    assert len(hold_out([("a",)] * 99 + [("b",)], 0.01, 0)) == 1
    with pytest.raises(InputError, match="only 'a'"):
        hold_out([("a",)], 0.5, 0)


def test_scores_of_pairs():
    p = np.array([[0.9, 0.5, 0.99, 0.9], [0.1, 0.5, 0.99, 0.9]])
    assert uncertainty(p)[:2] == pytest.approx([1.0, 1.0])
    gain = disagreement(p)
    assert gain[1:] == pytest.approx([0, 0, 0], abs=1e-12)
    assert gain[0] == pytest.approx(1 + 0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    with pytest.raises(InputError, match="two judges"):
        disagreement(p[:1])
    assert k_centre(np.array([[0.0], [0.1], [5.0], [9.0]]), 3) == [0, 3, 2]
    assert spread(np.array([4.0, 3.0, 2.0, 1.0]), ["x", "x", "x", "y"], 3, 1) == [0, 3, 1]
    refused = np.array([[np.nan, 0.5, 0.6]])
    assert select("uncertainty", refused, 3) == [1, 2]


def fitted(x, labels, ridge=1.0):
    """Logistic regression by Newton's method: weights (D,)."""
    w = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w))
        w += np.linalg.solve(hessian, x.T @ (labels - p) - ridge * w)
    return w


def accuracy_after(strategy, seed, budget=80, rounds=4):
    """Accuracy on noiseless pairs after labelling pairs that a strategy chose; raters are simulated."""
    rng = stream(seed, "active")
    taste = rng.normal(size=12)
    taste /= np.linalg.norm(taste)

    def pairs(num):
        # most pairs differ in two common features, and few in the others: labels of common ones soon say nothing new
        width = np.where(np.arange(12) < 2, 1.0, rng.random((num, 1)) < 0.15)
        x = rng.normal(size=(num, 12)) * width
        return x, x @ taste / 6

    x, gaps = pairs(1500)
    tests, truth = pairs(2000)
    rare = np.abs(tests[:, 2:]).sum(1) > 0
    tests, truth = tests[rare], truth[rare]
    rater = Rater("r", temperature=0.05, tie_width=0.0, inattention=0.0)
    labels = np.array([rater.choose(0.5 + g / 2, 0.5 - g / 2, rng) for g in gaps])
    known = [int(i) for i in rng.permutation(len(x))[:20]]
    for round_ in range(rounds):
        draws = [[known[i] for i in rng.integers(len(known), size=len(known))] for _ in range(5)]
        models = [fitted(x[d], labels[d]) for d in draws]
        beliefs = np.stack([1 / (1 + np.exp(-x @ w)) for w in models])
        beliefs[:, known] = np.nan
        known += select(strategy, beliefs, budget // rounds, features=x, seed=100 * seed + round_)
    w = fitted(x[known], labels[known])
    return float(np.mean((tests @ w > 0) == (truth > 0)))


@pytest.mark.parametrize("strategy", ["disagreement", "mixed", "coverage"])
def test_chosen_pairs_teach_more_than_random_ones(strategy):
    gains = [accuracy_after(strategy, seed) - accuracy_after("random", seed) for seed in range(8)]
    mean, error = np.mean(gains), np.std(gains, ddof=1) / len(gains) ** 0.5
    assert mean > 2 * error > 0, (mean, error)


def test_a_file_that_the_manifest_does_not_know_is_named(tmp_path):
    write_rows(map(row_of_votes, many(tmp_path)), tmp_path / "data" / "train.parquet")
    describe_folder(tmp_path / "data")
    assert data_stats(tmp_path / "data", pixels=False)["unlike_manifest"] == []
    write_rows(map(row_of_votes, many(tmp_path, 3)), tmp_path / "data" / "train.parquet")
    assert data_stats(tmp_path / "data", pixels=False)["unlike_manifest"] == [
        "train.parquet is not the file of the manifest"
    ]

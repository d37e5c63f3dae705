"""Pages of studies: every figure of `study.json` comes onto them, what is missing says so."""

import json

import pytest

from rewarddance.apps.report import write_report
from rewarddance.apps.report_study import study_content
from rewarddance.core.errors import RunError


def _row(accuracy, **more):
    figures = {"accuracy": accuracy, "accuracy_generator": accuracy, "accuracy_rendered": 0.9, "spearman": 0.5}
    return {"id": figures, "ood": {**figures, "spearman": None}, "train_seconds": 60.0, "comparisons_per_second": 9.0}


GAP = {"mean": 0.1, "ci_low": 0.05, "ci_high": 0.15}
JUDGES = {
    "variants": {
        "pairwise": {"parameters": 2e6, "seeds": [_row(0.8), _row(0.7)]},
        "ranking": {"parameters": 2e6, "seeds": [_row(0.6), _row(0.6)]},
    },
    "skipped": {"regression": "the records have no ratings"},
    "differences": {"ranking": {"id": GAP}},
    "against": "pairwise",
}


def test_a_study_of_judges_has_a_table_differences_and_figures(tmp_path):
    title, (figures, gaps, _), drawn = study_content(JUDGES)
    assert title == "Study of paradigms"
    assert figures.rows[0][:3] == ["pairwise", "2.0M", "0.750 (0.700 to 0.800)"]
    assert figures.rows[2][:2] == ["regression", "left empty: the records have no ratings"]
    assert all(len(r) == len(figures.head) for r in figures.rows)
    assert gaps.rows == [["ranking", "+0.100 [+0.050, +0.150]", "–"]]
    assert [name for name, html in drawn if html] == [
        "The generator's own pairs",
        "Rendered and corrupted pairs",
        "Rank correlation within a prompt",
        "Accuracy minus that of pairwise, held-out prompts",
    ]
    (tmp_path / "study.json").write_text(json.dumps(JUDGES))
    page = write_report(tmp_path).read_text()
    assert "0.750 (0.700 to 0.800)" in page
    assert "the records have no ratings" in page


def test_own_data_without_exact_values_shows_choices_alone():
    figures = {"accuracy": 0.7, "accuracy_ci": [0.6, 0.8]}
    rows = [{"id": figures, "ood": {}, "train_seconds": 1.0, "comparisons_per_second": 2.0, "latency_p50": 0.02}]
    study = {"sizes": {"tiny-2m": {"parameters": 2e6, "seeds": rows}}, "unfinished": {"tiny-20m": "out of time"}}
    title, (table, costs), drawn = study_content(study)
    assert title == "Study of sizes"
    assert table.title == "One seed [95% interval over prompts]"
    assert costs.head == ["", "training, s", "latency p50, ms", "comparisons/s"]
    assert costs.rows == [["tiny-2m", "1", "20", "2"]]
    assert table.head[2] == "held-out choices, held-out prompts"
    assert table.rows == [
        ["tiny-2m", "2.0M", "0.700 [0.600, 0.800]", "–"],
        ["tiny-20m", "left empty: out of time", "", ""],
    ]
    assert len(drawn) == 1


def _mark(arm, mark, minus=()):
    gain = {"over_seeds": GAP, "over_prompts": GAP}
    work = {"generator_passes": 6e4, "generator_passes_with_gradient": 1e3, "judge_calls": 500}
    return {
        "arm": arm, "mark": mark, "seeds": [0, 1], "sets": {"benchmark": {**gain, "categories": {"count": gain}}},
        "reached": {"0": True, "1": mark == "work"}, "steps": {"0": 10, "1": 12}, "kl": {"0": 0.001, "1": 0.003},
        "work": {**work, "judge_calls_with_gradient": 0}, "seconds": 9.0, "cpu_seconds": 8.0,
        "feature_diversity_ratio": {"0": 0.9, "1": 0.95}, "vendi": {}, "proxy": {"0": 0.6, "1": None},
        "gap": {"0": 0.1, "1": 0.3}, "hacking": {"0": "none", "1": "none"}, "minus": minus,
    }  # fmt: skip


def test_a_study_of_alignment_shows_gains_costs_and_differences():
    minus = {"arm": "sft", "mark": "work", "sets": {"benchmark": {"over_seeds": GAP, "smallest": 0.04}}}
    curve = [{"step": 5, "kl": 0.001, "gold": 0.65, "passes": 3e4}]
    study = {
        "start": {"benchmark": 0.6},
        "start_curve": 0.62,
        "sets": {"benchmark": {"count": 48}},
        "marks": [_mark("sft", "work") | {"hacking": {"0": None, "1": None}}, _mark("refl", "kl", minus=[minus])],
        "curves": {"refl": {"0": curve}},
    }
    _, (gains, costs, categories), ((_, lines), (_, gaps)) = study_content(study)
    interval = "+0.100 [+0.050, +0.150]"
    assert gains.rows[1] == ["refl, equal KL", "2", interval, interval, "sft, equal work", interval, "0.040"]
    assert costs.rows[1][:6] == [
        "refl, equal KL",
        "0.00200 (not reached by 1 of 2)",
        "60,000 (1,000)",
        "500 (0)",
        "11",
        "9",
    ]
    assert costs.rows[1][7:] == ["0.93", "–", "0.600", "+0.20", "none"]
    assert costs.rows[0][-1] == "–"  # the judge answered no prompt
    assert categories.rows[0] == ["sft, equal work", interval]
    assert all(len(row) == len(table.head) for table in (gains, costs, categories) for row in table.rows)
    assert "forward passes of the generator" in lines
    assert "refl, equal KL minus sft, equal work" in gaps


def test_a_study_of_searches_shows_differences_and_costs():
    row = {"verifier": "anchor", "budget": 50, "gold": GAP, "score": GAP, "refused": 0.0}
    row |= {"nfe": 50.0, "decodes": 5.0, "judge_calls": 4.0, "seconds": 1.0, "diversity": {"feature": 0.4}}
    rows = [row | {"search": "best_of_n"}, row | {"search": "paths", "minus_best_of_n": GAP, "budget": 100}]
    title, (gold, gaps, costs), ((_, html),) = study_content({"one_sample": GAP, "rows": rows, "left_out": {}})
    assert title == "Study of searches"
    assert "one sample has 0.100" in gold.title
    assert gold.rows == [
        ["anchor", "best_of_n", "0.100 [0.050, 0.150]", "–"],
        ["anchor", "paths", "–", "0.100 [0.050, 0.150]"],
    ]
    assert gaps.rows == [["anchor", "paths", "–", "+0.100 [+0.050, +0.150]"]]
    assert costs.rows[0] == ["anchor", "best_of_n", "50", "50", "5", "4", "0.0", "0.100 [0.050, 0.150]", "0.400"]
    assert all(len(r) == len(t.head) for t in (gold, gaps, costs) for r in t.rows)
    assert "paths, 100 NFE, anchor" in html


def test_a_cross_validation_shows_every_fold_and_the_mean(tmp_path):
    fold = {"num_train": 90, "num_held_out": 10, "accuracy": 0.7, "spearman": None, "answer_mass": 0.99}
    means = {"accuracy": {"mean": 0.75, "ci_low": 0.6, "ci_high": 0.9}, "answer_mass": {**GAP, "mean": 0.99}}
    study = {"mean": means, "folds": {"style-flat": fold, "style-outline": {**fold, "accuracy": 0.8}}}
    title, (table,), drawn = study_content(study)
    assert title == "Cross-validation"
    assert table.head[:4] == ["held out", "trained on", "measured on", "ordered right"]
    assert table.rows[1] == ["style-outline", "90", "10", "0.800", "0.990"]
    assert table.rows[-1][:4] == ["mean [95%]", "", "", "0.750 [0.600, 0.900]"]
    assert len(drawn) == 1
    single = {**means, "spearman": {"mean": 0.4, "ci_low": None, "ci_high": None}}  # one fold alone had any
    assert study_content({**study, "mean": single})[1][0].rows[-1][4] == "0.400"
    (tmp_path / "cross_validation.json").write_text(json.dumps(study))
    assert "style-outline" in write_report(tmp_path).read_text()


def test_a_folder_without_anything_to_report_says_so(tmp_path):
    with pytest.raises(RunError, match=r"study\.json"):
        write_report(tmp_path)

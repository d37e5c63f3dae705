"""Names of the preference formats, apart from their readers, so that `--help` needs neither torch nor pyarrow."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal[
    "jsonl",
    "csv",
    "imagereward",
    "imagerewarddb",
    "hpdv2",
    "hpdv3",
    "pickapic",
    "richhf",
    "videofeedback",
    "videogen",
    "genai-bench",
    "mj-bench",
    "mmrb2",
    "trl",
    "label-studio",
    "argilla",
    "fastchat",
]
"""A preference format by name. `jsonl` and `csv` are rewarddance's own rows."""

FORMATS: tuple[Format, ...] = get_args(Format)

Strategy = Literal["disagreement", "uncertainty", "coverage", "mixed", "random"]
"""How `data select` orders pairs; see `data.acquire`."""

SplitBy = Literal["prompt", "model", "annotator", "category", "style", "generator", "source"]
"""The keys by which `data split` keeps records together; see `data.splits`."""

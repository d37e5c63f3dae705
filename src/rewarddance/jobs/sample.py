"""`rewarddance sample`: pictures or clips of prompts to a folder.

With best-of-N or another search the judge keeps the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from rewarddance.align.config import AlignConfig
from rewarddance.core.config import Precision
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.progress import progress, say
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Request, picture_of, text_of, texts_of
from rewarddance.generator.trace import draw
from rewarddance.jobs.load import load_generator, load_judge, warn_of_cut_prompts
from rewarddance.jobs.sample_files import Layout, SampleFiles, check_layout, square_of
from rewarddance.reward.composite import AnyJudge
from rewarddance.search.anchors import verifier_of
from rewarddance.search.best_of_n import Selection, select
from rewarddance.search.config import SearchConfig, VerifierConfig
from rewarddance.search.methods import run_search
from rewarddance.search.run import Result


@dataclass(frozen=True)
class Sampling:
    """A generator and how it samples.

    Attributes:
        guidance: classifier-free guidance scale; 1 is off.
        sample_batch: pictures sampled and decoded at once.
        dtype: type of the generator's weights; precision: of its passes.
        resolution: side of the pictures in pixels; the checkpoint's own when None.
        max_sequence_length: tokens of a prompt that T5, or a language model in its place, reads.
    """

    generator: str = "tiny"
    num_steps: int = 20
    guidance: float = 1.0
    sample_batch: int = 128
    dtype: Literal["fp32", "bf16"] = "fp32"
    resolution: int | None = None
    precision: Precision = "auto"
    max_sequence_length: int = 256

    @classmethod
    def of_run(cls, adapter: Path | None) -> Sampling:
        """The settings of the alignment run whose folder (or adapter) `adapter` is; the defaults for other folders."""
        for folder in () if adapter is None else (adapter, adapter.parent):
            if (folder / "run.json").is_file() and (run := RunFolder(folder).read())["kind"] == "align":
                config = AlignConfig.model_validate(run["config"])
                return cls(
                    config.generator,
                    config.num_steps,
                    config.measured_guidance,
                    config.sample_batch,
                    config.generator_dtype,
                    config.resolution,
                    config.precision,
                    config.max_sequence_length,
                )
        return cls()

    def load(self, adapter: Path | None) -> Tunable:
        return load_generator(
            self.generator,
            adapter=adapter,
            guidance=self.guidance,
            dtype=self.dtype,
            resolution=self.resolution,
            max_sequence_length=self.max_sequence_length,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Searching:
    """A search at inference.

    Attributes:
        nfe: largest number of forward passes of the generator for each picture.
        verifier: how the judge is asked.
    """

    settings: SearchConfig
    nfe: int
    verifier: VerifierConfig = VerifierConfig()


def sample_to_folder(
    prompts: Sequence[Request],
    out: Path,
    sampling: Sampling,
    *,
    num: int,
    layout: Layout = "plain",
    best_of: int = 1,
    searching: Searching | None = None,
    adapter: Path | None = None,
    judge: str = "tiny",
    criterion: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `num` PNG files a prompt (MP4 files and one `sheet.png` for a generator of clips) and `samples.json`.

    The files have the layout of a benchmark's scorer if one is named.

    Each is the judge's best of `best_of` samples, or the result of `searching`. A prompt's picture is cut and scaled to
    the generator's size.

    Returns:
        samples: what `samples.json` holds: file and prompt of every picture. With `best_of` also the mean log-odds of
        each candidate against the others and which one was kept. If the judge refused to compare, the first candidate
        is kept and `kept` is None. With `searching` also the verifier's score (None if it refused every candidate),
        NFE, decodes, judge calls and refused judgements. computes_in: precision of generator and judge.
    """
    if num < 1 or best_of < 1 or sampling.num_steps < 1 or sampling.sample_batch < 1:
        raise ConfigError("num, best-of, num-steps and sample-batch must be 1 or more")
    generator = sampling.load(adapter)
    check_layout(layout, prompts, generator.drawn.num_frames)
    prompts = [_ready(p, generator.side) for p in prompts]
    warn_of_cut_prompts(generator, texts_of(prompts), sampling.max_sequence_length)
    ready = load_judge(judge, precision=sampling.precision) if best_of > 1 or searching is not None else None
    out.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    files = SampleFiles(out, num, layout)
    num_candidates = best_of if searching is None else max(1, searching.nfe // sampling.num_steps)
    prompts_at_once = max(1, sampling.sample_batch // (num * num_candidates))
    with progress("prompts") as report:
        for start in range(0, len(prompts), prompts_at_once):
            part = prompts[start : start + prompts_at_once]
            repeated = [p for p in part for _ in range(num)]
            if searching is not None and ready is not None:
                results = _search(generator, ready, repeated, searching, sampling, criterion, seed)
                listed += [_write_result(files, p, r) for p, r in zip(repeated, results, strict=True)]
            else:
                drawn = _draw(generator, part, num * best_of, sampling, seed)
                listed += _write_best(files, repeated, drawn, best_of, ready, criterion)
            report(start + len(part), len(prompts))
    files.write_sheet()
    write_json(out / "samples.json", listed)
    if refused := sum(s.get("kept", 0) is None or s.get("score", 0) is None for s in listed):
        say(f"the judge refused to compare the candidates of {refused} pictures; the first candidate was kept")
    computes_in = {"generator": generator.precision} | ({} if ready is None else {"judge": ready.precision})
    return {"samples": listed, "computes_in": computes_in}


def _write_best(
    files: SampleFiles,
    prompts: Sequence[Request],
    drawn: Sequence[Media],
    best_of: int,
    judge: AnyJudge | None,
    criterion: str | None,
) -> list[dict[str, Any]]:
    """Write the judge's best of every `best_of` candidates. Returns the lines of `samples.json`."""
    groups = [drawn[i : i + best_of] for i in range(0, len(drawn), best_of)]
    chosen = [None] * len(groups) if judge is None else select(judge, prompts, groups, criterion)
    return [_write(files, *one) for one in zip(prompts, groups, chosen, strict=True)]


def _draw(generator: Tunable, prompts: Sequence[Request], each: int, sampling: Sampling, seed: int) -> list[Media]:
    """`each` pictures of every prompt. Their noise depends on seed and prompt alone, not on what else is drawn."""
    rngs = [torch.Generator().manual_seed(seed_of(seed, "sample", p)) for p in texts_of(prompts)]
    noise = torch.cat([generator.noise(each, rng) for rng in rngs])
    flat = [p for p in prompts for _ in range(each)]
    return list(draw(generator, flat, noise, sampling.num_steps, batch=sampling.sample_batch))


def _ready(prompt: Request, side: int) -> Request:
    """The prompt with its picture, if it has one, in the generator's size."""
    picture = picture_of(prompt)
    return prompt if isinstance(prompt, str) or picture is None else replace(prompt, condition=square_of(picture, side))


def _write(files: SampleFiles, prompt: Request, group: Sequence[Media], selection: Selection | None) -> dict[str, Any]:
    file = files.write(group[0 if selection is None else selection.best or 0], prompt)
    entry: dict[str, Any] = {"file": file, "prompt": text_of(prompt)}
    if selection is None:
        return entry
    margins = [None if m != m else m for m in selection.margin.tolist()]  # NaN is not JSON
    return {**entry, "kept": selection.best, "margins": margins}


def _search(
    generator: Tunable,
    judge: AnyJudge,
    repeated: Sequence[Request],
    searching: Searching,
    sampling: Sampling,
    criterion: str | None,
    seed: int,
) -> list[Result]:
    """One result for each of `repeated`; a prompt that is listed several times has different noises each time."""
    steps, batch = sampling.num_steps, sampling.sample_batch
    verifier = verifier_of(
        judge,
        generator,
        repeated,
        num_steps=steps,
        seed=seed,
        settings=searching.verifier,
        criterion=criterion,
        batch=batch,
    )
    return run_search(
        generator,
        verifier,
        repeated,
        nfe=searching.nfe,
        num_steps=steps,
        seed=seed,
        settings=searching.settings,
        batch=batch,
    )


def _write_result(files: SampleFiles, prompt: Request, result: Result) -> dict[str, Any]:
    file = files.write(result.picture, prompt)
    score = None if result.score != result.score else result.score  # NaN is not JSON
    counts = {k: getattr(result, k) for k in ("nfe", "decodes", "judge_calls", "refused")}
    return {"file": file, "prompt": result.prompt, "score": score, **counts}

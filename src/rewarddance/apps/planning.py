"""`rewarddance plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from rich.table import Column, Table

from rewarddance.apps.flags import Count, Flags, Least, need
from rewarddance.core.progress import console, say


@dataclass(frozen=True)
class PlanCommand(Flags):
    """Memory of a judge's training on given GPUs, and what to switch on so that it fits. Nothing is downloaded.

    The figures are those of one process at the worst moment of a step, in GiB; a tenth of the memory is left free.

    Example: rewarddance plan --backbone internvl3.5-38b --gpus 8 --memory 80GB

    Example: rewarddance plan --backbone qwen3-vl-8b --gpus 2 --memory 80GB --side 1024

    Example: rewarddance plan --backbone models/my-internvl --gpus 1 --memory 24GB --tiles 4 --json
    """

    backbone: str
    """A size (tiny-2m ... tiny-200m, internvl2.5-26b, internvl3.5-1b ... 38b, qwen2.5-vl-3b ... 72b, qwen3-vl-2b ...
    32b) or a local folder with a config.json."""
    gpus: Count = 1
    """Processes, one GPU each."""
    memory: str = "80GB"
    """Of one GPU."""
    micro_batch: Count = 4
    """Prompts in one pass; fewer are tried where it does not fit."""
    pictures: Annotated[int, Least(2)] = 4
    """Pictures of each prompt, all compared with each other in both orders."""
    text_tokens: Count = 96
    """Tokens of instruction, prompt and question."""
    tiles: Count = 1
    """InternVL: parts that a picture is cut into beside a view of the whole, as in `train`."""
    side: Count = 448
    """Qwen: side of the pictures in pixels."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        from rewarddance.apps.commands import show
        from rewarddance.jobs.plan import parse_memory, plan
        from rewarddance.vlm.footprint import Pass

        whole = self.backbone.startswith(("tiny", "internvl"))
        need(
            not (whole and "side" in self.given()), f"plan: {self.backbone} takes no --side; --tiles cuts its pictures"
        )
        work = Pass(self.micro_batch, self.pictures, self.text_tokens, self.tiles, self.side)
        result = plan(self.backbone, self.gpus, parse_memory(self.memory), work)
        if self.json:
            show(_as_dict(result, self._tiles()))
            return
        parts = result.parts
        say(
            f"{result.backbone}: {parts.total / 1e9:.2f}B parameters ({parts.vision / 1e9:.2f}B vision); "
            f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} of {self.memory}"
        )
        console.print(_table(result))
        if result.chosen is None:
            say("nothing here fits: use more GPUs, larger ones, or fewer pictures")
            return
        kind = "internvl-lora" if result.chosen.trained == "adapters" else "internvl"
        recipe = "" if self.backbone.startswith("tiny") else f"recipes/{kind}.yaml "
        say(
            f"besides: {result.loading / 1e9:,.3g} GB of main memory while {self.gpus} process"
            f"{'es load' if self.gpus > 1 else ' loads'}, and {result.checkpoint / 1e9:,.3g} GB of disk a checkpoint "
            "(three at the peak)"
        )
        start = f"torchrun --nproc-per-node {self.gpus} -m rewarddance" if self.gpus > 1 else "rewarddance"
        say(
            f"{start} train {recipe}--backbone {self.backbone} {result.chosen.flags()}{self._tiles()} "
            f"--prompts-per-step {self.gpus * result.chosen.records} --data DATA --out RUN"
        )

    def _tiles(self) -> str:
        return f" --tiles {self.tiles}" if self.tiles > 1 else ""


def _table(result: Any) -> Table:
    setting_column = Column("setting", min_width=20, overflow="fold")
    columns = ("total", "weights", "optim", "average", "pass")
    table = Table("fits", setting_column, *(Column(p, justify="right") for p in columns), title="GiB of one process")
    for setting, memory in _worth_showing(result.tried):
        lasting = (memory.weights, memory.optimizer, memory.average)
        values = [v / 2**30 for v in (memory.total, *lasting, memory.total - sum(lasting))]
        cells = [f"{v:.1f}" if v >= 10 else f"{v:.2f}" for v in values]
        table.add_row("yes" if memory.total <= result.limit else "no", setting.flags(), *cells)
    return table


def _worth_showing(tried: Any) -> list[Any]:
    """The last of the settings that differ only in the size of a pass or in sharding. This one needs the least
    memory."""
    last: dict[Any, Any] = {}
    for setting, memory in tried:
        last[setting.trained, setting.weights, setting.average, setting.checkpointing] = setting, memory
    return list(last.values())


def _as_dict(result: Any, tiles_flag: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "backbone": result.backbone,
        "parameters": asdict(result.parts),
        "limit_gib": round(result.limit / 2**30, 2),
        "chosen": asdict(result.chosen) if result.chosen else None,
        "loading_gib": round(result.loading / 2**30, 2),
        "checkpoint_gib": round(result.checkpoint / 2**30, 2),
        "flags": result.chosen.flags() + tiles_flag if result.chosen else None,
        "tried": [{**asdict(s), **m.gib(), "fits": m.total <= result.limit} for s, m in result.tried],
    }

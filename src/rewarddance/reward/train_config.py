"""Configuration of judge training. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.config import Config, Precision
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.reward.config import Paradigm
from rewarddance.reward.context import Context


class LoraSettings(Config):
    """Low-rank adapters in the language model's layers, instead of training all weights."""

    rank: int = Field(0, ge=0)
    """0 trains all weights."""
    alpha: float = Field(32.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    vision: bool = False
    """Train the vision tower's own weights beside the adapters."""


class RewardConfig(Config):
    """The backbone, the data and the settings of a judge's training."""

    backbone: str = "tiny"
    """`tiny` (`tiny-20m` and `tiny-200m` grow from it), a short name (`internvl3.5-8b`) or name on the hub, or a local
    folder of InternVL, Qwen2.5-VL or Qwen3-VL in Hugging Face layout."""
    data: str = "embedded"
    """`embedded`, or a folder written by `rewarddance data build` or `data import`."""
    paradigm: Paradigm = "generative_pairwise"
    """Generative judges answer yes or no; the others put a scalar head on the same backbone (`reward/paradigms.py`).
    `bradley_terry_ties` also learns how often pictures tie, and needs data with ties."""
    context: Context = Context()
    pointwise_weight: float = Field(0.0, ge=0)
    """`generative_pairwise` only. Above 0 the judge also learns the pointwise question about every picture, with this
    weight beside 1 for a comparison. It can then judge single pictures, for example as the verifier of a search."""
    temperature: Annotated[float, Field(gt=0)] | Literal["fit"] = "fit"
    """Generative judges: their log-odds are divided by it, in training and after. `fit` takes the likeliest value for
    the VLM's answers before training, so that the first steps need not unlearn how sure the VLM is."""
    calibration_prompts: int = Field(128, ge=0)
    """Prompts that are kept out of training (at most a twentieth of all) to fit the judge's final temperature, so that
    P(yes) is calibrated. With 0, or with fewer than 160 prompts in all, no temperature is fitted."""
    shuffle_labels: bool = False
    """Train on random choices. This makes the control judge, which has seen the pictures and learnt no preferences."""
    prompts_per_step: int = Field(24, ge=1)
    micro_batch: int = Field(0, ge=0)
    """Prompts in one pass; gradients accumulate. 0 takes all at once, and halves when memory runs out."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    reason_weight: float = Field(0.5, ge=0)
    """With chain of thought: weight of the mean loss of a reason's tokens, beside 1 for the verdict's loss. A
    temperature divides it too, as it divides the verdict's gradient, so that their ratio stays."""
    freeze_vision: bool = False
    """Do not train the vision tower; the projector from it into the language model is trained. With LoRA neither is
    trained, unless `lora.vision` is on."""
    tiles: int = Field(1, ge=1)
    """Parts that a large picture is cut into at most, beside a view of the whole (InternVL; its own processor takes
    12). 1 uses the view of the whole alone, made square. Kept with the judge."""
    clips: ClipFrames = ClipFrames()
    """Which frames of a clip the judge sees. Kept with the judge."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights (and of adapters' inputs) that is dropped in training."""
    lora: LoraSettings = LoraSettings()
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights. bf16 halves their memory and suits LoRA, whose adapters stay fp32; training bf16 weights
    themselves loses small updates."""
    precision: Precision = "auto"
    """Precision of passes (autocast); weights and optimizer keep their types. `auto` is bf16 where the hardware has
    it, and fp32 for models of at most 100M parameters on a CPU. `run.json` says which precision was used."""
    compile: bool = True
    """Compile the layers of models with more than 100M parameters on a GPU. Costs half a minute at the start."""
    start_share: float = Field(0.0, ge=0, lt=1)
    """Share of the starting weights in the saved ones (WiSE-FT, arXiv 2109.01903). A judge that continues training on
    something else then keeps more of what it knew. Needs training of all weights in every process (no LoRA, `shard:
    1`)."""
    patience: int = Field(0, ge=0)
    """Stop after this many validations without a better accuracy, and keep the weights of the best one. 0 never stops
    early and keeps the last weights."""
    shard: int = Field(1, ge=1)
    """Processes (of those that torchrun starts) that share one copy of weights, gradients and optimizer state (FSDP2).
    Groups of them are data-parallel replicas. 1 keeps a whole copy in every process."""
    seed: int = Field(0, ge=0)
    optim: OptimConfig = OptimConfig(lr=5e-4, warmup_steps=30, schedule="cosine", ema_decay=0.99, weight_decay=0.01)
    loop: LoopConfig = LoopConfig(num_steps=600, validate_every=100, save_every=200)

    @model_validator(mode="after")
    def _vision_settings_agree(self) -> Self:
        if self.freeze_vision and self.lora.vision:
            raise ValueError("freeze_vision and lora.vision contradict each other about the vision tower")
        if self.start_share and (self.lora.rank or self.shard > 1):
            raise ValueError("start_share needs whole weights: lora.rank 0 and shard 1")
        if self.lora.rank and self.lora.vision and self.weights == "bf16" and self.precision == "fp32":
            raise ValueError("lora.vision trains an fp32 tower; beside weights: bf16 that needs precision: bf16")
        return self

    @model_validator(mode="before")
    @classmethod
    def _without_reference(cls, given: Any) -> Any:
        """Two names of one thing: a generative judge without a reference is the pointwise one."""
        if not isinstance(given, dict) or given.get("paradigm", "generative_pairwise") != "generative_pairwise":
            return given
        context = given.get("context") or {}
        reference = context.get("reference") if isinstance(context, dict) else context.reference
        return {**given, "paradigm": "generative_pointwise"} if reference == "none" else given

    @model_validator(mode="after")
    def _context_fits_the_paradigm(self) -> Self:
        special = self.context.layout != "strict" or self.context.cot != "none"
        if special and self.paradigm != "generative_pairwise":
            raise ValueError(f"context.layout and context.cot are for generative_pairwise, not {self.paradigm}")
        if self.pointwise_weight and (special or self.paradigm != "generative_pairwise"):
            raise ValueError("pointwise_weight is for generative_pairwise, layout strict, without chain of thought")
        alone = self.paradigm in ("generative_pointwise", "regression")
        if self.context.reference == "best_of_n" and alone:
            raise ValueError(f"context.reference is for paradigms that compare; {self.paradigm} looks at one picture")
        if self.context.reference == "none" and not alone:
            raise ValueError(f"context.reference none: {self.paradigm} learns from comparisons; leave random")
        if self.context.examples and not self.paradigm.startswith("generative"):
            raise ValueError(f"context.examples are for generative judges, not {self.paradigm}")
        if self.label_smoothing and self.paradigm == "regression":
            raise ValueError("label_smoothing moves choices towards a tie; regression learns ratings, leave it 0")
        return self

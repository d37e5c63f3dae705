"""Regional compilation: one layer of a kind is compiled, and all layers of that kind share the code.

Compiled layers run norm, rotary embedding and gating in fused kernels, and flex attention without a separate call. The
code takes any number of tokens, so a process compiles a handful of variants (vision, language, last layer; with and
without gradients), each once.
"""

from __future__ import annotations

from rewarddance.core.device import SMALL_MODEL, num_parameters
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.flex import raise_recompile_limit


def compile_layers(backbone: Backbone, enabled: bool = True) -> bool:
    """Compile the layers of both towers at their first call. Returns False if they are not compiled.

    Compilation takes half a minute. It is left out on a CPU, where it gains about 2%, and for models of at most
    `SMALL_MODEL` parameters.
    """
    if not enabled or backbone.device.type != "cuda" or num_parameters(backbone.module) <= SMALL_MODEL:
        return False
    raise_recompile_limit()
    for layer in backbone.blocks:
        layer.compile(dynamic=True)
    return True

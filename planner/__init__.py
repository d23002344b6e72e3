"""The planner: the best hybrid-parallel training plan for a model on a GPU cluster.

    import planner
    plan = planner.plan("llama-3.1-70b", gpu="h100-sxm", gpus=64, seq_len=8192, global_batch=512)
    plan.prediction.step_seconds

Public: ``plan``, ``estimate``, ``compare``, ``load_model``, ``load_cluster``, ``Plan``. Everything is
imported on first use, so ``import planner`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Plan", "__version__", "compare", "estimate", "load_cluster", "load_model", "plan"]

if TYPE_CHECKING:
    from planner.plan_file.schema import Plan
    from planner.public import compare, estimate, load_cluster, load_model, plan


def __getattr__(name: str) -> Any:
    if name == "Plan":
        from planner.plan_file.schema import Plan

        return Plan
    if name in __all__:
        from planner import public

        return getattr(public, name)
    raise AttributeError(f"module 'planner' has no attribute {name!r}")

"""The cases: one rank of a plan each, on cut-down depths. Plain data, no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """A dense decoder's sizes, per layer and vocabulary."""

    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool = False


SIZES = {
    "llama-2-7b": Sizes(4096, 32, 32, 11008, 32000),
    "llama-3.1-8b": Sizes(4096, 32, 8, 14336, 128256),
    "llama-3.1-70b": Sizes(8192, 64, 8, 28672, 128256),
    "llama-3.1-405b": Sizes(16384, 128, 8, 53248, 128256),
    "llama-3.2-1b": Sizes(2048, 32, 8, 8192, 128256, tied=True),
    "wide-feed-forward": Sizes(3072, 24, 2, 24576, 64000),
    "narrow-feed-forward": Sizes(5120, 40, 40, 13824, 100352),
}


@dataclass(frozen=True)
class Case:
    """Rank ``rank`` of pp stages of a model of ``layers`` blocks; sharding is of the data axis."""

    name: str
    model: str
    layers: int
    recompute: str = "none"
    sharding: str = "parameters"
    dp: int = 8
    tp: int = 1
    pp: int = 1
    rank: int = 0
    sequence: int = 4096
    microbatch_size: int = 1
    microbatches: int = 1
    unit: str = "block"


def _mode_cases() -> list[Case]:
    """Every recompute mode under both shardings, without and with tensor parallelism."""
    found = []
    for mode in ("none", "selective", "full"):
        found += [
            Case(f"7b-{mode}", "llama-2-7b", 4, mode),
            Case(f"7b-gradients-{mode}", "llama-2-7b", 4, mode, "gradients"),
            Case(f"8b-tp8-{mode}", "llama-3.1-8b", 4, mode, tp=8, sequence=8192),
            Case(f"8b-tp2-gradients-{mode}", "llama-3.1-8b", 4, mode, "gradients", dp=4, tp=2),
            Case(f"70b-tp8-{mode}", "llama-3.1-70b", 4, mode, dp=32, tp=8, sequence=8192),
        ]
    return found


def _pipeline_cases() -> list[Case]:
    """First, middle and last stages, where weights stay gathered and gradients whole."""
    stage = {"sharding": "optimizer", "pp": 4}
    return [
        Case("70b-pp4-first", "llama-3.1-70b", 12, "full", **stage, tp=8, sequence=8192, microbatches=8),
        Case("70b-pp4-middle", "llama-3.1-70b", 12, "full", **stage, tp=8, rank=1, microbatches=8),
        Case("70b-pp4-last", "llama-3.1-70b", 12, "full", **stage, tp=8, rank=3, microbatches=8),
        Case("405b-pp16-first", "llama-3.1-405b", 32, "full", "optimizer", 8, 8, 16, 0, 8192, 1, 16),
        Case("7b-pp4-few", "llama-2-7b", 8, "selective", **stage, microbatches=4),
        Case("7b-pp4-first", "llama-2-7b", 12, "none", **stage, microbatches=6),
        Case("7b-pp4-last", "llama-2-7b", 12, "none", **stage, rank=3, microbatches=6),
        Case("8b-pp2-selective", "llama-3.1-8b", 8, "selective", "optimizer", 4, 2, 2, 0, microbatches=4),
        Case("8b-pp2-last-mb2", "llama-3.1-8b", 8, "none", "optimizer", 4, 1, 2, 1, 2048, 2, 4),
    ]


def _unit_cases() -> list[Case]:
    """Sharded weights gathered by part or by matrix, where blocks are large and where tensors are."""
    return [
        Case(f"7b-{sequence}-{unit}-{mode}", "llama-2-7b", 6, mode, dp=dp, sequence=sequence, unit=unit)
        for dp, sequence in ((8, 512), (16, 4096))
        for unit in ("part", "matrix")
        for mode in ("none", "full")
    ]


CASES = (
    *_unit_cases(),
    *_mode_cases(),
    Case("7b-deep", "llama-2-7b", 16, "none"),
    Case("7b-deep-full", "llama-2-7b", 32, "full"),
    Case("70b-deep-full", "llama-3.1-70b", 24, "full", dp=16, tp=8, sequence=8192),
    Case("405b-tp8", "llama-3.1-405b", 3, "full", dp=16, tp=8, sequence=8192),
    Case("405b-gradients", "llama-3.1-405b", 2, "selective", "gradients", dp=16, tp=8, sequence=8192),
    Case("1b-tied", "llama-3.2-1b", 16, "none", dp=4),
    Case("1b-tied-full", "llama-3.2-1b", 16, "full", dp=4, sequence=2048),
    Case("1b-tied-gradients", "llama-3.2-1b", 8, "selective", "gradients", dp=4, microbatch_size=4),
    Case("7b-mb4", "llama-2-7b", 4, "none", sequence=2048, microbatch_size=4),
    Case("7b-accumulated", "llama-2-7b", 4, "none", microbatches=3),
    Case("7b-accumulated-gradients", "llama-2-7b", 6, "full", "gradients", microbatches=2),
    Case("7b-short", "llama-2-7b", 4, "full", sequence=512),
    Case("8b-long", "llama-3.1-8b", 4, "full", sequence=32768, tp=2),
    Case("wide", "wide-feed-forward", 6, "none", dp=4, tp=2, sequence=3072, microbatch_size=3),
    Case("narrow", "narrow-feed-forward", 6, "selective", dp=16, tp=4, sequence=6144),
    *_pipeline_cases(),
)

"""Small models, clusters and cost models that several test folders build from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from planner.cluster.spec import ClusterProfile, DeviceSpec, NodeGroup, Quantity, Tier
from planner.cluster.topology import Cluster, resolve_cluster
from planner.cost.constants import Constants
from planner.cost.model import CostModel
from planner.model.spec import (
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    LayoutRun,
    MixtureOfExperts,
    ModelSpec,
    Norm,
    Stack,
)
from planner.strategy.candidates import Problem
from planner.workload import Workload

RMS = Norm(kind="rmsnorm")
AMPLE_BYTES = 1e15


def _assumed(value: float) -> Quantity:
    return Quantity(value=value, basis="assumed", source="test")


class Builders:
    """One function per thing; every number has a default small enough to search exhaustively."""

    ample_bytes = AMPLE_BYTES

    def block(
        self,
        *,
        hidden: int = 1024,
        heads: int = 8,
        kv_heads: int | None = None,
        ffn: int = 4096,
        gated: bool = True,
        experts: int = 0,
        experts_per_token: int = 2,
        shared_ffn: int = 0,
        cross: bool = False,
        causal: bool = True,
        dropout: bool = False,
        parallel: bool = False,
        norms: int = 2,
    ) -> Block:
        """One block; ``experts`` > 0 makes its feed-forward routed with ``ffn`` as the expert width."""
        ff: FeedForward | MixtureOfExperts
        if experts:
            ff = MixtureOfExperts(
                num_experts=experts,
                experts_per_token=experts_per_token,
                expert_ffn_size=ffn,
                gated=gated,
                shared_ffn_size=shared_ffn,
            )
        else:
            ff = FeedForward(ffn_size=ffn, gated=gated)
        kv = heads if kv_heads is None else kv_heads
        attention = Attention(num_heads=heads, num_kv_heads=kv, head_dim=hidden // heads, causal=causal)
        other = Attention(num_heads=heads, num_kv_heads=kv, head_dim=hidden // heads, causal=False)
        return Block(
            attention=attention,
            cross_attention=other if cross else None,
            feed_forward=ff,
            norm=RMS,
            num_norms=3 if cross else norms,
            parallel=parallel,
            dropout=dropout,
        )

    def model(
        self,
        layers: int | Sequence[str] = 4,
        blocks: dict[str, Block] | None = None,
        *,
        hidden: int = 1024,
        vocab: int = 8192,
        tied: bool = False,
        name: str = "tiny",
    ) -> ModelSpec:
        """A decoder of ``layers`` equal blocks, or of the named block kinds in order."""
        blocks = blocks or {"block": self.block(hidden=hidden)}
        names = [next(iter(blocks))] * layers if isinstance(layers, int) else list(layers)
        stack = Stack(
            name="decoder",
            embedding=Embedding(kind="tokens"),
            layout=[LayoutRun(kinds=names, repeat=1)],
        )
        return ModelSpec(
            name=name,
            source="test",
            hidden_size=hidden,
            vocab_size=vocab,
            max_sequence_length=1 << 20,
            block_kinds=blocks,
            stacks=[stack],
            head=Head(kind="language_model", tied=tied),
        )

    def encoder_decoder(
        self, encoder: int = 2, decoder: int = 2, *, hidden: int = 1024, decoder_scale: float = 0.5
    ) -> ModelSpec:
        """An encoder whose output every decoder block reads."""
        blocks = {
            "encoder": self.block(hidden=hidden, causal=False, gated=False),
            "decoder": self.block(hidden=hidden, cross=True, gated=False),
        }
        stacks = [
            Stack(
                name="encoder",
                embedding=Embedding(kind="tokens"),
                layout=[LayoutRun(kinds=["encoder"], repeat=encoder)],
            ),
            Stack(
                name="decoder",
                embedding=Embedding(kind="shared"),
                layout=[LayoutRun(kinds=["decoder"], repeat=decoder)],
                sequence_scale=decoder_scale,
                cross_attends_to="encoder",
            ),
        ]
        return ModelSpec(
            name="tiny-encoder-decoder",
            source="test",
            hidden_size=hidden,
            vocab_size=8192,
            max_sequence_length=1 << 20,
            block_kinds=blocks,
            stacks=stacks,
            head=Head(kind="language_model"),
        )

    def device(
        self, *, tflop: float = 300.0, memory_gib: float = 80.0, memory_gb_per_s: float = 2000.0
    ) -> DeviceSpec:
        """An accelerator like those of 2020."""
        return DeviceSpec(
            name="test-device",
            vendor="test",
            generation="ampere",
            memory_gib=_assumed(memory_gib),
            memory_bandwidth_gb_per_s=_assumed(memory_gb_per_s),
            peak_tflop_per_s={"bf16": _assumed(tflop), "fp16": _assumed(tflop)},
            num_multiprocessors=_assumed(108),
            host_link_gb_per_s=_assumed(25),
        )

    def profile(
        self,
        *,
        per_node: int = 4,
        nodes: int = 64,
        fast: float = 250.0,
        slow: float = 100.0,
        slow_links: int = 1,
        fast_technology: str = "nvlink",
        in_network: bool = False,
        name: str = "test-cluster",
    ) -> ClusterProfile:
        """Nodes of ``per_node`` devices; ``fast`` and ``slow`` are GB/s per device and per node."""
        tiers = [
            Tier(
                name="inside",
                technology=fast_technology,
                devices=per_node,
                bandwidth_gb_per_s=_assumed(fast),
                latency_us=_assumed(3),
                in_network_reduction=in_network,
            ),
            Tier(
                name="across",
                technology="infiniband",
                bandwidth_gb_per_s=_assumed(slow),
                links=slow_links,
                latency_us=_assumed(14),
            ),
        ]
        group = NodeGroup(device="test-device", devices_per_node=per_node, num_nodes=nodes, tiers=tiers)
        return ClusterProfile(name=name, node_groups=[group])

    def cluster(self, devices: int = 4, profile: ClusterProfile | None = None, **device: float) -> Cluster:
        """``devices`` devices of ``profile``."""
        return resolve_cluster(profile or self.profile(), self.device(**device), devices)

    def cost_model(
        self,
        model: ModelSpec | None = None,
        cluster: Cluster | None = None,
        *,
        sequence: int = 2048,
        batch: int = 8,
        limit: float = AMPLE_BYTES,
        attention: str = "flash",
        constants: Constants | None = None,
        stack: str = "megatron",
    ) -> CostModel:
        """A cost model with the default constants and, unless told otherwise, memory without end."""
        workload = Workload.model_validate(
            {"sequence_length": sequence, "global_batch": batch, "attention": attention}
        )
        problem = Problem(model or self.model(), cluster or self.cluster(), workload, limit)
        return CostModel.of(problem, constants or Constants(), stack)

    def with_limit(self, model: CostModel, limit: float) -> CostModel:
        """The same cost model under another memory limit."""
        return replace(model, problem=replace(model.problem, memory_limit_bytes=limit))


@pytest.fixture(scope="session")
def build() -> Builders:
    return Builders()


@pytest.fixture(scope="session", autouse=True)
def one_core_each() -> Iterator[None]:
    """Beside other test processes a comparison plans in its own: the cores are taken."""
    with pytest.MonkeyPatch.context() as patched:
        if "PYTEST_XDIST_WORKER" in os.environ:
            patched.setattr("planner.comparison.usable_cores", lambda: 1)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--no-skips``: a skipped test fails. CI's heavy run uses it, so a missing launcher cannot hide."""
    parser.addoption("--no-skips", action="store_true", help="a skipped test counts as failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn skips into failures under ``--no-skips``."""
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {report.longrepr}"
    return report

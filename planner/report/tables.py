"""Catalog listings for people: models, devices, machines; at most 80 columns."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from planner.cluster.spec import ClusterProfile, DeviceSpec, Quantity
from planner.model.spec import Block, LatentAttention, MixtureOfExperts, ModelSpec
from planner.units import format_count, significant


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left")
    return table


def models_table(rows: list[dict[str, Any]]) -> Table:
    """One line a model."""
    table = _table(
        ("model", "left"),
        ("family", "left"),
        ("parameters", "right"),
        ("active", "right"),
        ("layers", "right"),
        ("hidden", "right"),
        ("max tokens", "right"),
    )
    for row in rows:
        is_sparse = row["active_parameters"] != row["parameters"]
        table.add_row(
            row["name"],
            row["family"],
            format_count(row["parameters"]),
            format_count(row["active_parameters"]) if is_sparse else "",
            str(row["layers"]),
            str(row["hidden_size"]),
            str(row["max_sequence_length"]),
        )
    return table


def model_text(spec: ModelSpec, total: int, active: int) -> list[str]:
    """A model in lines: counts, stacks, kinds of block, source."""
    lines = [f"{spec.name} ({spec.family})", f"parameters {total:,}"]
    if active != total:
        lines.append(f"active     {active:,}")
    lines.append(
        f"hidden {spec.hidden_size}, vocabulary {spec.vocab_size}, up to {spec.max_sequence_length} tokens"
    )
    for stack in spec.stacks:
        runs = ", ".join(f"{run.repeat} x ({' '.join(run.kinds)})" for run in stack.layout)
        lines.append(f"stack {stack.name}: {runs}")
    for name, block in spec.block_kinds.items():
        lines.append(f"block {name}: {_attention_words(block)}; {_feed_forward_words(block)}")
    if spec.published_parameters is not None:
        lines.append(
            f"published  {format_count(spec.published_parameters.total)}: {spec.published_parameters.source}"
        )
    lines.append(f"source     {spec.source}")
    return [*lines, *(f"note: {text}" for text in spec.notes)]


def _attention_words(block: Block) -> str:
    a = block.attention
    if isinstance(a, LatentAttention):
        return f"latent attention, {a.num_heads} heads, kv rank {a.kv_lora_rank}"
    window = f", window {a.window}" if a.window else ""
    return f"{a.num_heads} heads of {a.head_dim}, {a.num_kv_heads} kv heads{window}"


def _feed_forward_words(block: Block) -> str:
    ff = block.feed_forward
    if isinstance(ff, MixtureOfExperts):
        shared = f", shared width {ff.shared_ffn_size}" if ff.shared_ffn_size else ""
        return f"{ff.num_experts} experts of {ff.expert_ffn_size}, {ff.experts_per_token} a token{shared}"
    return f"feed-forward {ff.ffn_size}{' gated' if ff.gated else ''}"


def devices_table(devices: list[DeviceSpec]) -> Table:
    """One line a GPU."""
    table = _table(
        ("GPU", "left"),
        ("GiB", "right"),
        ("HBM GB/s", "right"),
        ("bf16 TFLOP/s", "right"),
        ("fp8", "right"),
        ("link GB/s", "right"),
    )
    for device in devices:
        peaks = {str(key): value for key, value in device.peak_tflop_per_s.items()}
        half = peaks.get("bf16") or peaks.get("fp16")
        table.add_row(
            device.name,
            significant(device.memory_gib.value),
            significant(device.memory_bandwidth_gb_per_s.value),
            _value(half) + ("" if "bf16" in peaks else " (fp16)"),
            _value(peaks.get("fp8")),
            _value(device.link_gb_per_s),
        )
    return table


def profiles_table(profiles: list[ClusterProfile]) -> Table:
    """One line a machine."""
    table = _table(
        ("machine", "left"), ("GPU", "left"), ("a node", "right"), ("GPUs", "right"), ("tiers", "left")
    )
    for profile in profiles:
        group = profile.node_groups[0]
        tiers = " > ".join(tier.technology for tier in group.tiers)
        total = sum(g.num_nodes * g.devices_per_node for g in profile.node_groups)
        table.add_row(profile.name, group.device, str(group.devices_per_node), str(total), tiers)
    return table


def _value(quantity: Quantity | None) -> str:
    return "-" if quantity is None else significant(quantity.value)


def _sourced(name: str, quantity: Quantity | None, sources: dict[str, str]) -> str:
    if quantity is None:
        return f"{name}: none"
    source = sources.get(quantity.source, quantity.source)
    note = f" ({quantity.note})" if quantity.note else ""
    return f"{name}: {quantity.value:g} [{quantity.basis}: {source}]{note}"


def device_lines(d: DeviceSpec) -> list[str]:
    """A GPU with the basis and source of every number."""
    lines = [f"{d.name} ({d.vendor}, {d.generation})"]
    for name, quantity in (
        ("memory GiB", d.memory_gib),
        ("HBM GB/s", d.memory_bandwidth_gb_per_s),
        ("multiprocessors", d.num_multiprocessors),
        ("device link GB/s, one direction", d.link_gb_per_s),
        ("host link GB/s, one direction", d.host_link_gb_per_s),
    ):
        lines.append(_sourced(name, quantity, d.sources))
    for precision, quantity in d.peak_tflop_per_s.items():
        lines.append(_sourced(f"{precision} TFLOP/s, dense", quantity, d.sources))
    return [*lines, *(f"note: {text}" for text in d.notes)]


def profile_lines(p: ClusterProfile) -> list[str]:
    """A machine, tier by tier, with the basis and source of every number."""
    lines = [p.name, p.description] if p.description else [p.name]
    for group in p.node_groups:
        lines.append(f"{group.num_nodes} nodes of {group.devices_per_node} x {group.device}")
        for tier in group.tiers:
            reach = f"{tier.devices} devices" if tier.devices else "the whole cluster"
            lines.append(
                f"tier {tier.name} ({tier.technology}) joins {reach}, {tier.links} links, "
                f"oversubscription {tier.oversubscription:g}"
            )
            lines.append(
                "  " + _sourced("GB/s per child unit, one direction", tier.bandwidth_gb_per_s, p.sources)
            )
            lines.append("  " + _sourced("latency us", tier.latency_us, p.sources))
    return [*lines, *(f"note: {text}" for text in p.notes)]

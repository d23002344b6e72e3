"""From a measured profile to the cost table of per-layer strategies.

Letters: B sequences of the global batch, m microbatches, n devices of a stage, t = tp or sp, d = n / t the
data ranks, N = d sp the ranks that hold the same weights, P a layer's weights on one rank in bytes (2 a
parameter in half precision), A the bytes of one sequence's hidden states. A data rank has b = B / (m d)
sequences.

    compute         forward = line(b / t), backward = 2 x forward (+ forward when recomputed): the profile
                    measures forward only, and Hetu-Galvatron's bct_fct_coe is 2
    overlap(x, y)   max + (slowdown - 1) min of compute x beside communication y (the measured coefficient
                    holds while both run)
    tp              one all-gather of b A a time (half the measured all-reduce): 4 in forward, 2 in backward
                    that cannot hide (Korthikanti et al., arXiv 2205.05198), 4 more when recomputed
    sp              all-to-all of query, key, value and output, b A / t each, in forward, again in backward,
                    and again when recomputed (arXiv 2309.14509)
    weights         sharded parameters: all-gather (N - 1) / N P beside forward and beside backward of every
                    microbatch
    gradients       once a step, beside the last backward: 2 (N - 1) / N P, or a reduce-scatter of (N - 1) /
                    N P on top of the gather when parameters are sharded. Exposed part only.
    layout change   all-gather of the wider group's hidden states, each way: what the launcher does before
                    it takes its slice
    send            the stage's hidden states, shared by its n devices, over the measured pair bandwidth
    states          weights 2, gradients 2, master weights 4, moments 8 bytes a parameter; gradients stay
                    whole between microbatches and are sharded only when m = 1 (they are reduced once)
    recompute       keeps the layer's input and needs one layer's other activations while it runs backward

Embedding, head and loss: the profile times them together. The time goes to the last stage: a table lookup
is none of it. Their states are measured apart for the first and the last stage.

Not in the profile, so not in the table: the optimizer's own pass, and the CUDA context (``CONTEXT_BYTES``
stands for it, Hetu-Galvatron's constant).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from planner.cost.layered_table import EndCosts, LayerCosts, LayeredSetting
from planner.errors import InputError, UnsupportedFeature
from planner.model.flop import block_forward_flop
from planner.model.parameters import block_parameters
from planner.model.spec import Attention, ModelSpec
from planner.profiles.galvatron import EndMemory, GalvatronProfile
from planner.strategy.decision import (
    RECOMPUTE_FULL,
    RECOMPUTE_NONE,
    SHARDING_GRADIENTS,
    SHARDING_NONE,
    SHARDING_PARAMETERS,
)
from planner.strategy.layered import LayerChoice
from planner.units import GIB, TERA

CONTEXT_BYTES = GIB
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2.0, 2.0, 12.0
STATE_BYTES = WEIGHT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES
ACTIVATION_BYTES = 2.0
BACKWARD_FACTOR = 2.0
# A profile may count a layer's weights within this share of the model's own count.
PARAMETER_TOLERANCE = 0.05
FLOP_RANGE = (1e10, 1e16)


@dataclass(frozen=True)
class ProfiledModel:
    """What the table needs of the model: hidden size, kind of every layer, heads; FLOP for the unit check."""

    hidden_size: int
    layers: tuple[int, ...]
    heads: int
    kv_heads: int

    @property
    def kv_share(self) -> float:
        return self.kv_heads / self.heads


@dataclass(frozen=True)
class Tabled:
    """The settings of a profile, and what was left out: (reason, count)."""

    settings: list[LayeredSetting]
    left_out: list[tuple[str, int]]


def profiled_model(profile: GalvatronProfile, model: ModelSpec) -> ProfiledModel:
    """The model of a profile, checked against it: kinds, weights and speed must be of the same model.

    Raises UnsupportedFeature for layer kinds that do not map, InputError for numbers of another model or
    unit.
    """
    sequence = model.block_sequence()
    kinds = len(profile.layer_seconds)
    if kinds == 1:
        layers = (0,) * len(sequence)
    elif kinds == len(model.stacks):
        layers = tuple(stack for stack, _ in sequence)
    else:
        raise UnsupportedFeature(
            f"the profile measures {kinds} layer types; {model.name} has {len(model.stacks)} stacks: "
            f"which layer is which type is not stated",
            hint="profile one type, or one a stack",
        )
    heads, kv_heads = 0, 0
    for (_, name), kind in zip(sequence, layers, strict=True):
        block = model.block_kinds[name]
        own = float(block_parameters(block, model.hidden_size))
        found = profile.layer_memory[kind].parameters
        if abs(found / own - 1.0) > PARAMETER_TOLERANCE:
            raise InputError(
                f"layertype_{kind} has {found:.4g} parameters (MB at 4 bytes each), a layer of {model.name} "
                f"{own:.4g}: another model, or another unit",
                hint="give --model the model that was profiled",
            )
        flop = block_forward_flop(block, model.hidden_size, profile.sequence_length)
        rate = flop / profile.layer_seconds[kind].each
        if not FLOP_RANGE[0] <= rate <= FLOP_RANGE[1]:
            raise InputError(
                f"layertype_{kind} would run at {rate / TERA:.3g} TFLOP/s: times are milliseconds per sample",
                hint="check the unit of the computation file",
            )
        if not isinstance(block.attention, Attention):
            raise UnsupportedFeature(f"{model.name}: latent attention is not split by tp or sp here")
        heads, kv_heads = block.attention.num_heads, block.attention.num_kv_heads
    return ProfiledModel(model.hidden_size, layers, heads, kv_heads)


def layered_settings(profile: GalvatronProfile, model: ProfiledModel, global_batch: int) -> Tabled:
    """One table a (pp, microbatches): every divisor of the devices and of the batch that the profile
    covers."""
    gaps: dict[str, int] = {}

    def gap(reason: str) -> None:
        gaps[reason] = gaps.get(reason, 0) + 1

    settings = []
    for pp in _divisors(profile.gpus):
        if pp > len(model.layers):
            gap(f"pp {pp} is more than {len(model.layers)} layers")
            continue
        if pp > 1 and pp not in profile.p2p_bytes_per_s:
            gap(f"no row pp_size_{pp}")
            continue
        for m in _divisors(global_batch):
            setting = _Filler(profile, model, pp, m, global_batch, gap).setting()
            if setting is not None:
                settings.append(setting)
    return Tabled(settings, sorted(gaps.items()))


class _Filler:
    """The table of one (pp, m)."""

    def __init__(
        self,
        profile: GalvatronProfile,
        model: ProfiledModel,
        pp: int,
        m: int,
        batch: int,
        gap: Callable[[str], None],
    ) -> None:
        self.profile, self.model, self.pp, self.m, self.gap = profile, model, pp, m, gap
        self.ranks = profile.gpus // self.pp
        self.sequences = batch // self.m
        self.hidden_bytes = profile.sequence_length * model.hidden_size * ACTIVATION_BYTES

    def setting(self) -> LayeredSetting | None:
        choices = [c for c in self.choices() if self.is_covered(c)]
        layers = [replace(c, recompute=r) for c, r in product(choices, (RECOMPUTE_NONE, RECOMPUTE_FULL))]
        ends = [c for c in choices if self.is_end_covered(c)]
        if not choices or not ends:
            return None
        splits = sorted({c.split for c in layers} | {c.split for c in ends})
        change = np.array([[self.change_seconds(a, b) for b in splits] for a in splits])
        send = 0.0
        if self.pp > 1:
            send = self.sequences * self.hidden_bytes / self.ranks / self.profile.p2p_bytes_per_s[self.pp]
        kinds = range(len(self.profile.layer_seconds))
        rows = np.array([[self.layer_row(kind, c) for c in layers] for kind in kinds])
        first = np.array([self.first_row(c) for c in ends])
        last = np.array([self.last_row(c) for c in ends])
        return LayeredSetting(
            pp=self.pp,
            microbatches=self.m,
            layers=self.model.layers,
            strategies=tuple(layers),
            ends=tuple(ends),
            costs=LayerCosts(*(rows[:, :, i] for i in range(6))),
            first=EndCosts(*(first[:, i] for i in range(5))),
            last=EndCosts(*(last[:, i] for i in range(5))),
            layout=np.array([splits.index(c.split) for c in layers], dtype=np.intp),
            end_layout=np.array([splits.index(c.split) for c in ends], dtype=np.intp),
            change_forward_seconds=change,
            change_backward_seconds=change,
            send_forward_seconds=send,
            send_backward_seconds=send,
            reserve_bytes=CONTEXT_BYTES,
        )

    def choices(self) -> list[LayerChoice]:
        """tp or sp of every divisor, sharding of gradients or parameters where there are data ranks.

        Replicated states are left out: the same traffic and more bytes than sharded gradients (exact).
        """
        found = []
        for t in _divisors(self.ranks):
            for tp, sp in ((t, 1), (1, t)) if t > 1 else ((1, 1),):
                d = self.ranks // t
                if self.sequences % d:
                    continue
                if d * sp == 1:
                    found.append(LayerChoice(tp, sp, d, SHARDING_NONE))
                else:
                    found += [LayerChoice(tp, sp, d, s) for s in (SHARDING_GRADIENTS, SHARDING_PARAMETERS)]
        return found

    def is_covered(self, c: LayerChoice) -> bool:
        """Whether every row the strategy needs was measured and the heads divide."""
        p, t = self.profile, c.split
        if self.model.heads % t or self.model.kv_heads % t:
            self.gap(f"{self.model.heads} heads ({self.model.kv_heads} of keys) do not divide by {t}")
        elif t > 1 and t not in (p.all_reduce if c.tp > 1 else p.all_to_all):
            self.gap(f"no {'allreduce' if c.tp > 1 else 'all2all'}_size_{t}_..MB_time rows")
        elif any(t not in memory.activation_bytes for memory in p.layer_memory):
            self.gap(f"no tp_activation_per_bsz_dict entry {t}")
        elif c.sharding_ranks > 1 and self.bus_key(c) not in p.bus_bytes_per_s:
            group, adjacent = self.bus_key(c)
            self.gap(f"no row allreduce_size_{group}_consec_{int(adjacent)}")
        else:
            return True
        return False

    def is_end_covered(self, c: LayerChoice) -> bool:
        p = self.profile
        for memory in (p.end_off, p.end_first, p.end_last):
            if c.tp not in memory.state_bytes or c.split not in memory.activation_bytes:
                self.gap(f"no other_memory entry for tp {c.tp}, split {c.split}")
                return False
        return True

    def bus_key(self, c: LayerChoice) -> tuple[int, bool]:
        """(group, adjacent ranks) of the ranks that share weights: strided by tp, else in a row."""
        group = c.sharding_ranks
        return group, c.tp == 1 or group == self.profile.gpus

    def bus_seconds(self, c: LayerChoice, size: float) -> float:
        """Seconds of ``size`` bytes of bus traffic among the ranks that share weights."""
        return size / self.profile.bus_bytes_per_s[self.bus_key(c)] if c.sharding_ranks > 1 else 0.0

    def overlap(self, compute: float, communication: float) -> float:
        return max(compute, communication) + (self.profile.overlap_slowdown - 1.0) * min(
            compute, communication
        )

    def gather_seconds(self, group: int, size: float) -> float:
        """All-gather of ``size`` bytes inside a group of adjacent ranks: half an all-reduce."""
        return self.profile.all_reduce[group].seconds(size) / 2.0

    def change_seconds(self, before: int, after: int) -> float:
        """From one split to another: the wider group's hidden states are gathered."""
        wide = max(before, after)
        if before == after:
            return 0.0
        if wide not in self.profile.all_reduce:
            return float("inf")
        return self.gather_seconds(wide, self.sequences * wide / self.ranks * self.hidden_bytes)

    def kept_share(self, c: LayerChoice) -> float:
        """Bytes of states a rank keeps, a parameter it works on."""
        share = 1.0 / c.sharding_ranks
        weights = share if c.sharding == SHARDING_PARAMETERS else 1.0
        gradients = share if c.sharding != SHARDING_NONE and self.m == 1 else 1.0
        states = share if c.sharding != SHARDING_NONE else 1.0
        return WEIGHT_BYTES * weights + GRADIENT_BYTES * gradients + OPTIMIZER_BYTES * states

    def passes(
        self, c: LayerChoice, forward: float, backward: float, weights: float
    ) -> tuple[float, float, float]:
        """(forward, backward, exposed synchronisation) with the traffic of ``weights`` bytes around them."""
        n = c.sharding_ranks
        part = self.bus_seconds(c, (n - 1) / n * weights)
        if c.sharding == SHARDING_PARAMETERS:
            alone, last = self.overlap(backward, part), self.overlap(backward, 2.0 * part)
            return self.overlap(forward, part), alone, last - alone
        return forward, backward, self.overlap(backward, 2.0 * part) - backward

    def layer_row(self, kind: int, c: LayerChoice) -> tuple[float, ...]:
        p = self.profile
        memory = p.layer_memory[kind]
        samples = self.sequences / c.dp
        is_again = c.recompute == RECOMPUTE_FULL
        once = p.layer_seconds[kind].seconds(samples / c.split)
        backward = once * (BACKWARD_FACTOR + is_again)
        parameters = memory.parameters / c.tp
        f, b, sync = self.passes(c, once, backward, parameters * WEIGHT_BYTES)
        if c.tp > 1:
            each = self.gather_seconds(c.tp, samples * self.hidden_bytes)
            f, b = f + 4 * each, b + (2 + 4 * is_again) * each
        elif c.sp > 1:
            table, size = p.all_to_all[c.sp], samples * self.hidden_bytes / c.sp
            each = 2 * table.seconds(size) + 2 * table.seconds(size * self.model.kv_share)
            f, b = f + each, b + each * (1 + is_again)
        whole = memory.activation_bytes[c.split] * samples
        kept = memory.recomputed_bytes * samples / c.split if is_again else whole
        states = parameters * self.kept_share(c)
        return f, b, sync, states, kept, max(0.0, whole - kept) if is_again else 0.0

    def first_row(self, c: LayerChoice) -> tuple[float, ...]:
        """Embedding: its states, its gradients, and the scatter of its output under tp."""
        f, b, sync, states = self.end_passes(c, self.profile.end_first.state_bytes[c.tp], 0.0)
        if self.pp == 1:
            return f, b, sync, states, 0.0
        return f, b, sync, states, self.end_activation(c, self.profile.end_first)

    def last_row(self, c: LayerChoice) -> tuple[float, ...]:
        """Head and loss; with one stage the activations of both ends, which the profile states together."""
        p = self.profile
        size = p.end_last.state_bytes[c.tp]
        if self.pp == 1:
            size = p.end_off.state_bytes[c.tp] - p.end_first.state_bytes[c.tp]
        compute = p.end_seconds.seconds(self.sequences / c.dp / c.split)
        f, b, sync, states = self.end_passes(c, size, compute)
        return f, b, sync, states, self.end_activation(c, p.end_off if self.pp == 1 else p.end_last)

    def end_passes(
        self, c: LayerChoice, state_bytes: float, compute: float
    ) -> tuple[float, float, float, float]:
        parameters = state_bytes / STATE_BYTES
        f, b, sync = self.passes(c, compute, BACKWARD_FACTOR * compute, parameters * WEIGHT_BYTES)
        if c.tp > 1:
            each = self.gather_seconds(c.tp, self.sequences / c.dp * self.hidden_bytes)
            f, b = f + each, b + each
        return f, b, sync, parameters * self.kept_share(c)

    def end_activation(self, c: LayerChoice, memory: EndMemory) -> float:
        return memory.activation_bytes[c.split] * self.sequences / c.dp


def _divisors(value: int) -> list[int]:
    return [d for d in range(1, value + 1) if value % d == 0]


def least_step_flop_rate(profile: GalvatronProfile, model: ModelSpec) -> float:
    """FLOP/s of one device inside its layers at large batch: what the profile shows the GPU reach."""
    found = []
    for (_, name), kind in zip(model.block_sequence(), profiled_model(profile, model).layers, strict=True):
        flop = block_forward_flop(model.block_kinds[name], model.hidden_size, profile.sequence_length)
        found.append(flop / profile.layer_seconds[kind].each)
    return max(found)

"""The model as a chain of layers with folded kinds, plus the edges that leave the chain.

A layer is the smallest thing a pipeline stage can hold: an embedding, a block, or the final norm with the
head. Layers are listed in execution order; equal layers share a *kind*. For most models the only edges
join neighbours; an encoder-decoder adds a cross edge from the encoder's end to every decoder block, so a
cut inside the decoder also carries the encoder's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from planner.model.parameters import embedding_parameters, final_norm_parameters, head_parameters
from planner.model.spec import Block, ModelSpec, Stack


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer. ``block`` is set for blocks, ``stack`` says whose sequence it runs on."""

    name: str
    role: Literal["embedding", "block", "norm", "head"]
    stack: Stack
    block: Block | None = None


@dataclass(frozen=True)
class Edge:
    """Hidden states of ``stack_index``'s sequence flow from layer ``source`` to layer ``target``."""

    source: int
    target: int
    stack_index: int


@dataclass(frozen=True)
class LayerChain:
    """kinds: distinct layer kinds; layers[i]: kind index of layer i; edges: who reads whom.

    ``block_layers[b]`` is the position in the chain of block b: embeddings, a stack's inner norm and the
    head sit between and around the blocks and always go with a neighbour.
    """

    kinds: tuple[LayerKind, ...]
    layers: tuple[int, ...]
    edges: tuple[Edge, ...]
    block_layers: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    def cut_scale(self, model: ModelSpec, first_block_after: int) -> float:
        """Hidden-state sequences that cross a cut before block ``first_block_after``, in workload lengths.

        1.0 for a plain chain; the decoder of an encoder-decoder adds the encoder's output. Each source is
        sent once however many layers behind the cut read it.
        """
        return sum(model.stacks[stack].sequence_scale for stack in self._crossing[first_block_after])

    @cached_property
    def _crossing(self) -> tuple[tuple[int, ...], ...]:
        """Per block the stacks of the sources read across a cut before it."""
        found = []
        for block in range(self.num_blocks):
            at = self.layer_range(block, block + 1)[0]
            sources = {
                (edge.source, edge.stack_index) for edge in self.edges if edge.source < at <= edge.target
            }
            found.append(tuple(sorted(stack for _, stack in sources)))
        return tuple(found)

    def stage_range(self, first: int, end: int, *, is_first: bool, is_last: bool) -> tuple[int, int]:
        """Chain positions [low, high) of a virtual stage with blocks [first, end).

        The first stage has the embedding and the last one the head, even without a block of its own.
        """
        blocks = self.block_layers
        low = 0 if is_first else blocks[first - 1] + 1 if first else blocks[0]
        high = len(self.layers) if is_last else blocks[end - 1] + 1 if end else blocks[0]
        return low, high

    def layer_range(self, first: int, end: int) -> tuple[int, int]:
        """Chain positions [low, high) that blocks [first, end) carry: their own and those before them.

        Everything between the previous block and block ``first`` (an embedding, another stack's norm)
        belongs to block ``first``; everything behind the last block (norm, head) belongs to it.
        """
        low = 0 if first == 0 else self.block_layers[first - 1] + 1
        high = len(self.layers) if end == self.num_blocks else self.block_layers[end - 1] + 1
        return low, high


def layer_chain(model: ModelSpec) -> LayerChain:
    """The chain of ``model``: per stack an embedding, its blocks and its final norm; then the head."""
    kinds: list[LayerKind] = []
    index: dict[str, int] = {}
    layers: list[int] = []
    edges: list[Edge] = []
    blocks: list[int] = []
    stack_end: dict[str, int] = {}

    def add(kind: LayerKind) -> int:
        if kind.name not in index:
            index[kind.name] = len(kinds)
            kinds.append(kind)
        layers.append(index[kind.name])
        return len(layers) - 1

    for number, stack in enumerate(model.stacks):
        previous = add(LayerKind(f"{stack.name}.embedding", "embedding", stack))
        for run in stack.layout:
            for name in run.kinds * run.repeat:
                here = add(LayerKind(f"{stack.name}.{name}", "block", stack, model.block_kinds[name]))
                blocks.append(here)
                edges.append(Edge(previous, here, number))
                if model.block_kinds[name].cross_attention is not None:
                    source = stack.cross_attends_to or ""
                    edges.append(Edge(stack_end[source], here, _stack_index(model, source)))
                previous = here
        is_last = number == len(model.stacks) - 1
        role: Literal["head", "norm"] = "head" if is_last else "norm"
        end = add(LayerKind(f"{stack.name}.{role}", role, stack))
        edges.append(Edge(previous, end, number))
        stack_end[stack.name] = end
    return LayerChain(tuple(kinds), tuple(layers), tuple(edges), tuple(blocks))


def _stack_index(model: ModelSpec, name: str) -> int:
    return [stack.name for stack in model.stacks].index(name)


def kind_parameters(model: ModelSpec, kind: LayerKind) -> int:
    """Parameters of an embedding, norm or head layer (blocks: ``block_parameters``)."""
    if kind.role == "embedding":
        return embedding_parameters(model, kind.stack)
    norm = final_norm_parameters(model, kind.stack)
    return norm + head_parameters(model) if kind.role == "head" else norm

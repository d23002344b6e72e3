"""Training stacks as data: what a framework keeps, reduces and hides.

A stack is not a branch in a formula; it is the numbers the formulas ask for. ``megatron`` follows
Megatron-Core with its distributed optimizer (bf16 weights, fp32 gradient buffer, fp32 master copy) and is
what plans without a target are priced on.

What each stack's memory rests on: ``megatron`` on Korthikanti et al. (tests/published/test_saved_tensors.py)
and allocated memory of published runs; ``torchtitan`` on PyTorch 2.13 itself, dense models, tensor by tensor
(tests/oracle); the others on Megatron's layers with their own widths, unchecked but for published runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stack:
    """What a framework stores, saves, moves and repeats.

    Bytes per element. element_bytes: tensors between kernels, 4 where nothing is cast to 16 bits.
    parameter_bytes: the weights compute reads. gradient_bytes: the gradient buffer.
    master_bytes: the fp32 weights the optimizer updates. gradient_reduce_bytes: width of the gradient
    reduction. keeps_master_apart: compute weights are kept beside the fp32 ones; False where those are the
    only ones kept, sharded in every mode, and parameter_bytes exist while gathered (FSDP2's
    MixedPrecisionPolicy). vocabulary_multiple: the vocabulary is padded to a multiple of this times tp.

    Overlap. hides_gradient_reduction and hides_parameter_gather: with the last backward and the next forward.
    hides_tensor_collectives: tp's in backward under the products beside them; hides_forward_collectives:
    those in forward too, piece by piece (Transformer Engine's user buffers). hides_launches: the host runs
    ahead of the device; False where every kernel waits to be launched (CUDA_LAUNCH_BLOCKING=1).
    bucket_parameters: elements per gradient bucket (Megatron-LM: max(40M, 1M x dp)). prefetch_layers:
    sharded layers gathered at once. scatters_sends: a tensor that every tp rank holds crosses a stage
    boundary in tp shares. reduces_whole_gradients: sharded optimizer states still all-reduce (DeepSpeed's
    stage 1).

    Gathers and reductions. gathers_input_again: under a split sequence a layer keeps its own part of the
    norm's output and gathers it again in backward (Megatron-LM's asynchronous linear layer, Korthikanti et
    al., arXiv 2205.05198, section 4.2.2); False where the gathered tensor is kept (DTensor's redistribute).
    gathers_each_microbatch: weights gathered whole for gradients sharding are freed by every backward
    (FSDP2, reshard_after_forward=False). regathers_head: backward gathers the head's weights again under
    sharded parameters. holds_pipeline_gradients: whatever the sharding, a pipeline stage keeps whole
    gradients until its last microbatch (torch.distributed.pipelining, stage.py). reduces_norms_in_backward:
    norm weights' partial gradients are summed over tp in every backward, not once per step (DTensor).

    Recompute. recomputed_product_period: 0 where selective recompute repeats the attention core
    (Megatron-Core); n where it keeps the outputs of attention, reduce-scatters and matrix products but
    repeats every n-th product (torchtitan's operator list). stops_recompute_early: full recompute ends once
    the last tensor backward needs is there, so neither the block's last product nor its reduce-scatter is
    repeated (torch.utils.checkpoint, use_reentrant=False).

    Kernels. accumulation_bytes: HBM bytes a weight that adding a microbatch's gradient to the buffer moves:
    fp32 read and written inside the product (8), or a kernel of its own (6 for 16-bit buffers, 10 for 16
    into 32 bits). score_*_bytes: what unfused attention moves, and keeps, of each score. pass_scale:
    element-wise bytes over those of fused kernels. loss_*_bytes: what the loss moves of each logit, 16 and 8
    where fused in fp32 (cast, maximum, exponent, sum; the gradient in place).

    Tensors. fuses_gate: activation and product with the gate are one kernel that keeps its two inputs alone
    (Megatron-Core's fused SwiGLU). norm_saved_bytes: per token and norm, beside input and output (the fp32
    statistic of PyTorch's fused kernel). logit_saved_bytes and logit_transient_bytes: per logit, kept and
    short-lived. makes_buffers_when_needed: gradients and gathered weights live only while needed, so the
    peak is the fullest of several moments (moments.py). For those: logit_backward_bytes and
    split_logit_backward_bytes, per logit in the loss's backward, whole or split over tp (fp32 gradients of
    loss and softmax, loss_parallel one more); pipeline_logit_bytes, outputs a last stage keeps through the
    loss; has_whole_table_gradient, the embedding's gradient has the whole vocabulary on every tp rank
    (DTensor: a row-wise embedding's backward replicates, then slices).

    broadcast_elements: elements of the mean weight tensor where each belongs to one rank, which sends it to
    all after the update, one rank after the other; 0 where one all-gather does.
    runs_flash2: fused attention is FlashAttention-2 on any GPU (PyTorch's scaled_dot_product_attention).
    has_unused_gradients: products add to the gradient buffer themselves (``unused_gradient.py``).
    has_host_optimizer: states, fp32 weights and update are the host's (``offload.on_host``).
    """

    name: str
    element_bytes: float = 2.0
    parameter_bytes: float = 2.0
    gradient_bytes: float = 4.0
    master_bytes: float = 4.0
    gradient_reduce_bytes: float = 4.0
    logit_saved_bytes: float = 6.0
    logit_transient_bytes: float = 4.0
    hides_gradient_reduction: bool = True
    hides_parameter_gather: bool = True
    hides_tensor_collectives: bool = True
    hides_forward_collectives: bool = False
    hides_launches: bool = True
    scatters_sends: bool = False
    reduces_whole_gradients: bool = False
    family: str = ""
    bucket_parameters: float = 40e6
    bucket_parameters_per_rank: float = 1e6
    prefetch_layers: float = 2.0
    fp8_weight_bytes: float = 2.0
    accumulation_bytes: float = 0.0
    score_forward_bytes: float = 10.0
    score_backward_bytes: float = 14.0
    score_saved_bytes: float = 2.0
    loss_forward_bytes: float = 16.0
    loss_backward_bytes: float = 8.0
    pass_scale: float = 1.0
    gathers_input_again: bool = True
    recomputed_product_period: int = 0
    stops_recompute_early: bool = False
    gathers_each_microbatch: bool = False
    regathers_head: bool = True
    reduces_norms_in_backward: bool = False
    vocabulary_multiple: int = 128
    fuses_gate: bool = True
    holds_pipeline_gradients: bool = False
    makes_buffers_when_needed: bool = False
    keeps_master_apart: bool = True
    has_whole_table_gradient: bool = False
    norm_saved_bytes: float = 0.0
    logit_backward_bytes: float = 4.0
    split_logit_backward_bytes: float = 4.0
    pipeline_logit_bytes: float = 0.0
    has_unused_gradients: bool = False
    has_host_optimizer: bool = False
    runs_flash2: bool = False
    broadcast_elements: float = 0.0

    @property
    def fitted_as(self) -> str:
        """The stack whose fitted constants hold: its own, or those of the stack it is a setting of."""
        return self.family or self.name

    def is_product_kept(self, ordinal: int) -> bool:
        """Whether selective recompute keeps the output of a block's ``ordinal``-th product, from 1."""
        return self.recomputed_product_period > 0 and ordinal % self.recomputed_product_period != 0


# FSDP2 over fp32 weights, DTensor tensor parallelism, torch.utils.checkpoint: PyTorch 2.13's own code.
TORCHTITAN = Stack(
    "torchtitan",
    runs_flash2=True,
    hides_tensor_collectives=False,
    gathers_input_again=False,
    recomputed_product_period=2,
    stops_recompute_early=True,
    gathers_each_microbatch=True,
    regathers_head=False,
    reduces_norms_in_backward=True,
    vocabulary_multiple=1,
    fuses_gate=False,
    holds_pipeline_gradients=True,
    makes_buffers_when_needed=True,
    keeps_master_apart=False,
    has_whole_table_gradient=True,
    norm_saved_bytes=4.0,
    logit_saved_bytes=4.0,
    logit_backward_bytes=8.0,
    split_logit_backward_bytes=12.0,
    pipeline_logit_bytes=2.0,
)

# The vocabulary's loss keeps its softmax in fp32, beside the 16-bit logits while it is made and beside their
# 16-bit gradient afterwards (Megatron-Core, tensor_parallel/cross_entropy.py).
MEGATRON = Stack(
    "megatron",
    accumulation_bytes=8.0,
    scatters_sends=True,
    logit_saved_bytes=4.0,
    logit_transient_bytes=2.0,
    has_unused_gradients=True,
)

# Megatron-DeepSpeed: gradient reduction after the last backward, half-precision gradients on the wire; tp's
# collectives of backward wait where they stand (megatron/mpu/mappings.py of the BigScience fork).
MEGATRON_DEEPSPEED = Stack(
    "megatron-deepspeed",
    scatters_sends=True,
    reduces_whole_gradients=True,
    gradient_bytes=4.0,
    gradient_reduce_bytes=2.0,
    accumulation_bytes=10.0,
    logit_saved_bytes=4.0,
    logit_transient_bytes=2.0,
    hides_gradient_reduction=False,
    hides_parameter_gather=False,
    hides_tensor_collectives=False,
)

STACKS: dict[str, Stack] = {
    "megatron": MEGATRON,
    # Megatron-LM with every overlap of communication switched off.
    "megatron-serial": replace(
        MEGATRON,
        name="megatron-serial",
        hides_gradient_reduction=False,
        hides_parameter_gather=False,
        hides_tensor_collectives=False,
        family="megatron",
    ),
    # Megatron-Core under NVIDIA's NeMo and Megatron-Bridge performance recipes: gradients reduced and kept in
    # bf16 (grad_reduce_in_fp32=False); under fp8 the kept weights are the fp8 ones and their transposes.
    "nemo": replace(
        MEGATRON,
        name="nemo",
        gradient_bytes=2.0,
        gradient_reduce_bytes=2.0,
        fp8_weight_bytes=0.0,
        accumulation_bytes=6.0,
        hides_forward_collectives=True,
        family="megatron",
    ),
    # Megatron-LM as MegaScale changed it (Jiang et al., arXiv 2402.15627): tp's collectives run in pieces
    # beside the products.
    "megascale": replace(MEGATRON, name="megascale", hides_forward_collectives=True, family="megatron"),
    "megatron-deepspeed": MEGATRON_DEEPSPEED,
    # The same under CUDA_LAUNCH_BLOCKING=1, as BLOOM's scripts set it against hangs (bigscience-workshop,
    # train/tr11-176B-ml/setup-test-n2.slurm).
    "megatron-deepspeed-blocking": replace(
        MEGATRON_DEEPSPEED,
        name="megatron-deepspeed-blocking",
        hides_launches=False,
    ),
    # Megatron-LM 1.1.5 in DeepSpeed's examples without its opt-in fusions (bias with gelu, bias with dropout
    # and sum, scale with mask and softmax): element-wise bytes twice the fused. Bytes a score, dropout
    # included: product 2, mask in place 4, softmax 4, dropout 5, product 2; backward: product 2, value
    # product 2, dropout 5, softmax 6, mask 4, two products 4; halved here, and less dropout's own 4.
    "megatron-deepspeed-plain": replace(
        MEGATRON_DEEPSPEED,
        name="megatron-deepspeed-plain",
        family="megatron-deepspeed",
        pass_scale=2.0,
        score_forward_bytes=4.5,
        score_backward_bytes=7.5,
    ),
    # Megatron-DeepSpeed without --fp16 or --bf16: fp32 tensors and states, no master copy, no fused softmax
    # (megatron/model/fused_softmax.py asks for 16-bit inputs). Bytes a score forward: product 4, mask in
    # place 8 and 1, softmax 8, product 4; backward: product 4, value product 4, softmax 12, mask 8 and 1,
    # two products 8; a logit forward: maximum 4, subtraction, exponent and division 8 each, sum 4. A
    # microbatch's gradient is added by autograd: two reads and a write. The host waits for
    # the device in every microbatch (megatron/core/tensor_parallel/data.py reads sizes back), and on the
    # fitted runs a microbatch of n sequences takes a constant and n shares: launches are not hidden.
    "megatron-deepspeed-fp32": replace(
        MEGATRON_DEEPSPEED,
        name="megatron-deepspeed-fp32",
        hides_launches=False,
        element_bytes=4.0,
        parameter_bytes=4.0,
        keeps_master_apart=False,
        gradient_reduce_bytes=4.0,
        accumulation_bytes=12.0,
        loss_forward_bytes=32.0,
        score_forward_bytes=25.0,
        score_backward_bytes=37.0,
        score_saved_bytes=4.0,
        logit_transient_bytes=4.0,
    ),
    # FSDP FULL_SHARD: bf16 gathers and reductions of fp32 shards.
    "pytorch-fsdp": Stack("pytorch-fsdp", gradient_reduce_bytes=2.0, runs_flash2=True),
    "torchtitan": TORCHTITAN,
    # The same without torch.compile: norms, rotary embedding and activation are chains of small kernels that
    # read and write fp32 copies, about three times the fused bytes.
    "torchtitan-eager": replace(TORCHTITAN, name="torchtitan-eager", pass_scale=3.0, family="torchtitan"),
    # The exported PyTorch script: FSDP2 and DTensor, with gathered weights kept until the update and every
    # group of weights gathered again in backward.
    "pytorch": Stack(
        "pytorch",
        family="pytorch-fsdp",
        runs_flash2=True,
        hides_tensor_collectives=False,
        gathers_input_again=False,
        stops_recompute_early=True,
        vocabulary_multiple=1,
        fuses_gate=False,
    ),
    # Accelerate with FSDP2: its mixed precision policy reduces in the precision of the products.
    "accelerate": Stack(
        "accelerate",
        family="pytorch-fsdp",
        runs_flash2=True,
        hides_tensor_collectives=False,
        gradient_reduce_bytes=2.0,
        gathers_input_again=False,
        stops_recompute_early=True,
        gathers_each_microbatch=True,
        vocabulary_multiple=1,
        fuses_gate=False,
    ),
    # Hetu-Galvatron: Megatron-LM's layers under FSDP1 (SHARD_GRAD_OP frees weights behind every backward).
    "galvatron": Stack(
        "galvatron",
        family="megatron",
        accumulation_bytes=6.0,
        gathers_each_microbatch=True,
        logit_saved_bytes=4.0,
        logit_transient_bytes=2.0,
    ),
    # Whole tensors belong to single ranks, which send them out one after another once all are updated
    # (hybrid_zero_optim.py, broadcast_params; overlap_sync_param is off in the repository's configs). The
    # mean tensor is that of InternLM-7B: 7.3e9 elements in 32 blocks of nine tensors and three more.
    "internevo": Stack(
        "internevo",
        accumulation_bytes=6.0,
        gradient_reduce_bytes=2.0,
        hides_parameter_gather=False,
        broadcast_elements=25e6,
    ),
    "mist": Stack("mist", accumulation_bytes=6.0, gradient_bytes=2.0, gradient_reduce_bytes=2.0),
}

# Whose fitted constants price a stack where none of its own runs tells them, nearest first: settings of the
# same code, the code it was made from, then what shares its kernels and launches. Megatron-Core has none:
# with launches of an older PyTorch the fitted rows agree less (objective 78.0 against 76.1).
RELATIVES: dict[str, tuple[str, ...]] = {
    "megatron-deepspeed": ("megatron-deepspeed-blocking", "megatron-deepspeed-fp32", "megatron"),
    "megatron-deepspeed-blocking": ("megatron-deepspeed", "megatron-deepspeed-fp32", "megatron"),
    "megatron-deepspeed-fp32": ("megatron-deepspeed", "megatron-deepspeed-blocking", "megatron"),
    "internevo": ("megatron",),
    "mist": ("megatron",),
    "torchtitan": ("pytorch-fsdp",),
    "pytorch-fsdp": ("torchtitan",),
}

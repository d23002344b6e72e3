"""Workload: what is trained. Sequence length, global batch, precision, optimizer, attention kernel."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["bf16", "fp16", "fp8"]
OptimizerName = Literal["adamw", "adam", "adamw-8bit", "sgd-momentum", "adafactor"]

# Bytes of optimizer state per parameter beside the fp32 master copy: the moments each recipe keeps.
# adafactor keeps row and column sums instead of a second moment; its share is below 1 % and counted as 0.
MOMENT_BYTES: dict[str, float] = {
    "adamw": 8.0,
    "adam": 8.0,
    "adamw-8bit": 2.0,
    "sgd-momentum": 4.0,
    "adafactor": 0.0,
}


class Workload(BaseModel):
    """What one training step processes and how numbers are stored.

    ``sequence_length`` tokens per sequence; ``global_batch`` sequences per optimizer step over the whole
    cluster; ``precision`` of matrix products (fp8 keeps bf16 elsewhere); ``tokens`` of the whole run,
    when days and dollars are asked for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    sequence_length: Annotated[int, Field(gt=0, le=2**27)]
    global_batch: Annotated[int, Field(gt=0, le=2**24)]
    precision: Precision = "bf16"
    optimizer: OptimizerName = "adamw"
    attention: Literal["flash", "unfused"] = "flash"
    tokens: Annotated[float, Field(gt=0, le=1e17)] | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens one optimizer step sees."""
        return self.sequence_length * self.global_batch

    @property
    def moment_bytes_per_parameter(self) -> float:
        """Optimizer moments, bytes per parameter, without the fp32 master copy."""
        return MOMENT_BYTES[self.optimizer]

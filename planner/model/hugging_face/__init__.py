"""Reading a Hugging Face ``config.json`` into a ModelSpec, without the transformers library."""

from planner.model.hugging_face.reader import (
    SUPPORTED_MODEL_TYPES,
    read_hugging_face_config,
)

__all__ = ["SUPPORTED_MODEL_TYPES", "read_hugging_face_config"]

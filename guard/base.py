"""The base of every configuration model: frozen, no unknown fields, documented field by field."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A validated, immutable piece of configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

"""Han layers in an existing model: `convert`, and what it tells of each dense layer."""

from hanops.conversion.dense import Conversion, Row, convert

__all__ = ["Conversion", "Row", "convert"]

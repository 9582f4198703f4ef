"""Packed models: one safetensors file with integer weight codes at their true width."""

from mixqvit.packing.model import Packed, PackedSource, load_packed, pack, packed, packed_source, storage

__all__ = ["Packed", "PackedSource", "load_packed", "pack", "packed", "packed_source", "storage"]

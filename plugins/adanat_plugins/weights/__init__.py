"""Weights: where they are, how they are read from whatever they were published in, and how they get into a module."""

from .assets import ASSETS, Asset, asset, resolve, weights_folder
from .containers import container_of, flatten, plain, read_state, read_tree, select, strip_prefixes, unwrap, without
from .flax_file import read_flax
from .loading import build, load_into, load_timm_vit, place, without_memory
from .restricted import Inert, RestrictedUnpickler
from .shapes import Shapes, encoder_sizes

__all__ = [
    "ASSETS",
    "Asset",
    "Inert",
    "RestrictedUnpickler",
    "Shapes",
    "asset",
    "build",
    "container_of",
    "encoder_sizes",
    "flatten",
    "load_into",
    "load_timm_vit",
    "place",
    "plain",
    "read_flax",
    "read_state",
    "read_tree",
    "resolve",
    "select",
    "strip_prefixes",
    "unwrap",
    "weights_folder",
    "without",
    "without_memory",
]

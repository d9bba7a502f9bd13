"""Plug-ins by name: found, loaded, their options parsed."""

from .discovery import FIRST_PARTY, GROUPS, discover, features_named_in, load
from .factories import create_features, create_generator, create_reward, reward_class
from .faults import explain
from .options import (
    GeneratorConfig,
    not_followed,
    parse_options,
    parse_override,
    parse_stored_options,
    shown_options,
)
from .probe import plugin_report
from .scaffold import new_plugin
from .version import toolkit_version

__all__ = [
    "FIRST_PARTY",
    "GROUPS",
    "GeneratorConfig",
    "create_features",
    "create_generator",
    "create_reward",
    "discover",
    "explain",
    "features_named_in",
    "load",
    "new_plugin",
    "not_followed",
    "parse_options",
    "parse_override",
    "parse_stored_options",
    "plugin_report",
    "reward_class",
    "shown_options",
    "toolkit_version",
]

"""Registers the gymnasium environments when imported (see ``integrations.gym_env``)."""

from .integrations.gym_env import GenerationVectorEnv

__all__ = ["GenerationVectorEnv"]

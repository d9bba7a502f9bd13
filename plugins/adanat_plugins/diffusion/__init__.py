"""Pipelines of diffusers, as training on them and using policies in them share: families, samplers, features."""

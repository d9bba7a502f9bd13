"""adanat-toolkit: learned per-sample sampling policies for frozen image generators (AdaNAT, ECCV 2024)."""

__version__ = "0.1.0"

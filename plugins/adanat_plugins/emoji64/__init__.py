"""emoji64: 10,934 real emoji images and small networks trained on them, so that everything runs without a download."""

from pathlib import Path

FOLDER = Path(__file__).parent

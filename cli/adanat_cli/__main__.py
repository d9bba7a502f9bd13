"""``python -m adanat_cli`` is ``adanat``."""

from .main import app

if __name__ == "__main__":
    app(prog_name="adanat")

"""The ``adanat`` command: thin Typer commands without logic of their own."""

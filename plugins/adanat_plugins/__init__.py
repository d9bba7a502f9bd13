"""First-party plug-ins of adanat-toolkit, registered through entry points exactly as third-party ones."""

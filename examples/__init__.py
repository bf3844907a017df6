"""Programs that run: ``python -m examples.NAME``, each with ``--help``."""

"""``python -m pipeline`` is the ``masklet`` command."""

from pipeline.cli import main

if __name__ == "__main__":
    main()

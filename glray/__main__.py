"""``python -m glray``: the same as the ``glray`` command (a submitted Ray job uses this form)."""

from glray.cli import main

if __name__ == "__main__":
    main()

"""``python -m runyard.cli`` is the ``runyard`` command."""

from runyard.cli.start import main

if __name__ == "__main__":
    main()

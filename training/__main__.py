"""Makes `python -m training` work."""

from training.cli import main

if __name__ == "__main__":
    main()

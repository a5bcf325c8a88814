"""``python -m phiconv``."""

from phiconv.cli import main

if __name__ == "__main__":
    main()

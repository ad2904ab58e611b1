"""`python -m trident`."""

from trident.app import main

if __name__ == "__main__":
    main()

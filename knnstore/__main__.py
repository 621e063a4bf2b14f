"""``python -m knnstore`` is the command ``knnstore``."""

from knnstore.cli import main

if __name__ == "__main__":
    main()

"""``python -m hrnet_fast.cli``: the command ``hrnet-fast``, for ``torchrun -m``."""

from hrnet_fast.cli import main

if __name__ == "__main__":
    main()

"""`python interface.py`: the Studio in the browser."""

from voxtral_finetune.studio.app import main

if __name__ == "__main__":
    main()

"""Writes README.md, the model card, of a run folder: `voxtral-finetune card RUN`."""

import sys

from voxtral_finetune.cli import main

if __name__ == "__main__":
    main(["card", *sys.argv[1:]], prog_name="generate_model_card.py")

"""Full fine-tuning: `voxtral-finetune train --method full`, with every flag of it."""

import sys

from voxtral_finetune.cli import main

if __name__ == "__main__":
    main(["train", "--method", "full", *sys.argv[1:]], prog_name="train.py")

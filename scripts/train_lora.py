"""LoRA fine-tuning: `voxtral-finetune train --method lora`, with every flag of it."""

import sys

from voxtral_finetune.cli import main

if __name__ == "__main__":
    main(["train", "--method", "lora", *sys.argv[1:]], prog_name="train_lora.py")

"""`python -m voxtral_finetune`: the command line."""

from voxtral_finetune.cli import main

if __name__ == "__main__":
    main(prog_name="voxtral-finetune")

"""`python -m alip.caption`: synthetic captions for any image source, one JSON line for each image."""

from alip.caption.command import main
from alip.errors import run_command

if __name__ == "__main__":
    run_command(main)

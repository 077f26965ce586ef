"""`python -m alip.caption`: synthetic captions for any image source, one JSON line for each image."""

if __name__ == "__main__":
    # Imported here, since worker processes import this module too and have no use for torch.
    from alip.caption.pipeline import main
    from alip.errors import run_command

    run_command(main)

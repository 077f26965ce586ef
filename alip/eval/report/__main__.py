"""python -m alip.eval.report RUN [RUN …]"""

from alip.errors import run_command
from alip.eval.report.command import main

if __name__ == "__main__":
    run_command(main)

# Sourced by quickstart.sh and test.sh: makes a virtual environment and installs what a list asks for, once.
# Needs Linux and Python 3.10 or newer; set PYTHON to choose one.

# find_python [NEWEST]: a Python from 3.10 up to 3.NEWEST that can install packages, or nothing and a failure.
find_python() {
    local newest=${1:-99} candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            "import ssl, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# make_environment FOLDER REQUIREMENTS [PYTHON]: re-uses the folder when it was made from the very same list.
make_environment() {
    local folder=$1 requirements=$2 python=${3:-} stamp
    stamp=$(cat requirements*.txt | cksum)
    if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/made-from-$requirements" 2>/dev/null)" = "$stamp" ]; then
        echo "environment: $folder is up to date"
        return 0
    fi
    if [ -z "$python" ] && ! python=$(find_python); then
        echo "error: no Python 3.10 or newer found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
        exit 2
    fi
    echo "environment: installing $requirements into $folder …"
    # An interrupted installation is completed: pip skips what is there.
    if ! "$python" -m venv "$folder"; then
        echo "error: cannot make a virtual environment in $folder; on Debian or Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
    if ! "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"; then
        echo "error: installing $requirements failed (pip's message is above); fix that and run the command again" >&2
        exit 2
    fi
    echo "$stamp" >"$folder/made-from-$requirements"
}

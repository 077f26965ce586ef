# Sourced by quickstart.sh and test.sh: makes a virtual environment and installs what a list asks for, once.
# Needs Linux and Python 3.10 or newer; set PYTHON to choose one.

# Finds a Python new enough, or says which is missing.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10 or newer found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
    return 2
}

# make_environment FOLDER REQUIREMENTS [PYTHON]: re-uses the folder when it was made from the very same list.
make_environment() {
    local folder=$1 requirements=$2 python=${3:-} stamp
    stamp=$(cat requirements*.txt | cksum)
    if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/made-from-$requirements" 2>/dev/null)" = "$stamp" ]; then
        echo "environment: $folder is up to date"
        return
    fi
    if [ -z "$python" ]; then
        python=$(find_python) || return
    fi
    echo "environment: installing $requirements into $folder (several GB the first time) …"
    # An unfinished folder of an interrupted run is filled up; pip skips what is there.
    "$python" -m venv "$folder" || {
        echo "error: cannot make a virtual environment in $folder; on Debian or Ubuntu: apt install python3-venv" >&2
        return 2
    }
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" || {
        echo "error: installing $requirements failed (see pip's words above); mend that and run the command again" >&2
        return 2
    }
    echo "$stamp" >"$folder/made-from-$requirements"
}

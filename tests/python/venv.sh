#!/bin/sh
# Makes a Python environment with the package $2 (with its version, as name==1.2.3) in the folder $1, once, and prints
# its interpreter's path.
set -eu
folder=$1
if [ ! -f "$folder/ready" ]; then
    python3 -m venv "$folder" >&2
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$2" >&2
    touch "$folder/ready"
fi
echo "$folder/bin/python"

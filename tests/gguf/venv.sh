#!/bin/sh
# Makes a Python environment with the package gguf in the folder $1, once, and prints its interpreter's path.
# The version is pinned: tests compare with its reader, its dumps and its decoders.
set -eu
folder=$1
if [ ! -f "$folder/ready" ]; then
    python3 -m venv "$folder" >&2
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0 >&2
    touch "$folder/ready"
fi
echo "$folder/bin/python"

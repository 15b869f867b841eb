#!/bin/sh
# Puts the npm package $2 (with its version, as name@1.2.3) into the folder $1, once. No script of the package is run.
set -eu
folder=$1
if [ ! -f "$folder/ready" ]; then
    mkdir -p "$folder"
    npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --silent "$2" >&2
    touch "$folder/ready"
fi

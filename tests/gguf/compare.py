"""Reads a merged file with the package gguf, and checks it against the model inside and our own account.

usage: compare.py MODEL MERGED EXPECTED.json
EXPECTED.json maps each tensor of MERGED to [type, shape, offset in the file].
"""

import json
import subprocess
import sys

from gguf import GGUFReader

model, merged, expected = sys.argv[1:]
expected = json.load(open(expected))

outer = {tensor.name: tensor for tensor in GGUFReader(merged).tensors}
assert list(outer) == list(expected), "the reader lists other tensors"
for name, (kind, shape, offset) in expected.items():
    tensor = outer[name]
    found = [tensor.tensor_type.name, [int(n) for n in tensor.shape], int(tensor.data_offset)]
    assert found == [kind, shape, offset], f"{name}: {found}, expected {[kind, shape, offset]}"

base = GGUFReader(model).tensors
for tensor in base:
    other = outer[tensor.name]
    assert tensor.tensor_type == other.tensor_type and (tensor.shape == other.shape).all(), tensor.name
    assert (tensor.data == other.data).all() or tensor.data.tobytes() == other.data.tobytes(), tensor.name

# `gguf-dump` as its users see it.
dump = subprocess.run([sys.executable, "-m", "gguf.scripts.gguf_dump", "--json", merged], stdout=subprocess.PIPE, check=True)
dump = json.loads(dump.stdout)["tensors"]
assert list(dump) == list(expected), "gguf-dump lists other tensors"
for name, (kind, shape, _) in expected.items():
    assert dump[name]["type"] == kind and dump[name]["shape"] == shape, name

heads = len(outer) - len(base) - 1
print(f"{len(base)} base tensors and {heads} head tensors")

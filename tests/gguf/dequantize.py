"""Decodes every tensor of FILE with the package gguf, into raw little-endian floats one after the other.

usage: dequantize.py FILE OUT
Prints the names of the tensors whose type the package can decode; the others are left out of OUT.
"""

import sys

import numpy
from gguf import GGUFReader
from gguf.quants import dequantize

numpy.seterr(all="ignore")
with open(sys.argv[2], "wb") as out:
    for tensor in GGUFReader(sys.argv[1]).tensors:
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            continue
        out.write(values.astype("<f4").tobytes())
        print(tensor.name)

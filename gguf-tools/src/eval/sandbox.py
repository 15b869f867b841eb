# Runs the program on stdin under limits, and prints the given word only if the program comes to its end.
import os
import resource
import sys

word, seconds, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
source = sys.stdin.read()
answer, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
for stream in (1, 2):
    os.dup2(nothing, stream)
limits = {"CPU": seconds, "AS": memory, "DATA": memory, "FSIZE": 1 << 20, "NOFILE": 64, "CORE": 0, "NPROC": 0}
for name, limit in limits.items():
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    except (AttributeError, ValueError, OSError):
        pass
sys.argv = [""]
try:
    exec(compile(source, "solution", "exec"), {"__name__": "solution"})
except BaseException:
    os._exit(1)
os.write(answer, word.encode())
os._exit(0)

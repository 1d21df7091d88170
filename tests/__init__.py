"""Tests, and the programs that are made of the same parts: processes side by side on few cores."""

import os

from deploy.cores import sharing

# Before anybody imports torch. What a recipe says of threads is above it, in the processes that it is about.
os.environ.update(sharing({"OMP_NUM_THREADS": "1", **os.environ}))

"""`python -m tests.system.imported` says which modules a process has before it imports any itself."""

import sys

if __name__ == "__main__":
    print(*sys.modules)

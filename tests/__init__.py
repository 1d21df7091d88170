"""Tests, and the programs that are made of the same parts: processes side by side on few cores."""

import os

from deploy.cores import sharing

os.environ.update(sharing(os.environ))  # before anybody imports torch

"""The objective as small pure functions, one axis a file, in the vocabulary of the papers. Knows tensors alone."""

"""What is true of an answer: verifiers by name, each a function of a completion and its problem."""

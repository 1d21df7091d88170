"""Where programs that a model wrote are run: alone, without files, network, processes or anything to answer for."""

"""The contract between generators and learner: what travels, where it lies in Redis, who owns it.

Knows neither torch nor vLLM: this room runs on a machine that has neither.
"""

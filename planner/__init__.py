"""The planner: the best hybrid-parallel training plan for a model on a GPU cluster."""

__version__ = "0.1.0"

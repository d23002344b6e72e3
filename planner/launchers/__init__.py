"""Launchers: what each training framework can express, and a plan written in its own words.

A launcher reads the plan file and nothing else: no search, no cost model. One module a launcher; the names
are in ``planner.launchers.registry``.
"""

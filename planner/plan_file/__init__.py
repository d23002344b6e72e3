"""The JSON contract: what a plan file holds, how it is built, and how it is read back.

The room is called plan_file because ``planner.plan`` is the public function.
"""

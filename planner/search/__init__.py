"""The search: decision tree, dynamic program, integer program. It sees a cost table, never a formula."""

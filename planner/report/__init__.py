"""Reports: everything here reads only plan records."""

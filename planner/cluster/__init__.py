"""What the machines are: devices, links, topology, and which links a group of ranks crosses."""

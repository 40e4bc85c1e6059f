"""The ranking service: in which order a viewer wants to read."""

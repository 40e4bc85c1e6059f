"""What every process of the mesh stands on. Knows no service."""

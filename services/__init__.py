"""The services of the mesh. None imports another; they meet through contracts and events."""

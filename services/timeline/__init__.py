"""The timeline service: home feeds."""

"""Scripts that run a written file in a process of their own, one per format; see `shared`."""

"""The native engine: a cell's equations, interpreted by a compiled kernel over tiles of rows."""
